"""Maps, tokens and batches are made where there is no torch: by loaders and light steps."""

import subprocess
import sys


def test_the_numpy_side_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from atelier.models.regional import batches, reading, regions, rules, texts\n"
        "found = regions.map_regions([[0, 0, 0.5, 0.5]], 4, 4)\n"
        "print(texts.region_texts(found.regions, ['a cat']), batches.collate([None], 4, 4, 3)['cells'].min())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['', 'a cat'] -1"
