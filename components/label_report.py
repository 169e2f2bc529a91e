"""Component ``label_report``: a page that shows what labels are like."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Output

from components import images


@images.ops
def label_report(
    raw: Input[Dataset],
    labels: Input[Dataset],
    report: Output[Artifact],
    page: Output[HTML],
    artifacts: str,
    title: str = "",
) -> None:
    """Writes report.html and statistics.json.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        title: the page's heading.
    """
    from atelier.steps.artifact import read_input, write_output
    from atelier.steps.label_report import run
    from atelier.steps.report import publish_page

    made = run(raw=read_input(raw), labels=read_input(labels), title=title, artifacts=artifacts)
    write_output(report, made)
    publish_page(page, made)
