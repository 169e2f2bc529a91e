"""Captions as DeepFloyd cleaned them for T5: what CrossFlow's T5 models were trained on and expect.

The rules are those of diffusers' ``IFPipeline``, with the standard library in the place of BeautifulSoup (tags out) and
of ftfy (ligatures, wide forms, quotes).
"""

import html
import re
import unicodedata
from html.parser import HTMLParser
from urllib.parse import unquote_plus

_FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_SITES = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b\/?(?!@)"
_DASHES = (
    r"[\u002D\u058A\u05BE\u1400\u1806\u2010-\u2015\u2E17\u2E1A\u2E3A\u2E3B\u2E40\u301C\u3030\u30A0"
    r"\uFE31\uFE32\uFE58\uFE63\uFF0D]+"
)
_BEFORE_MENDING = (
    (r"@[\w\d]+\b", ""),
    (r"[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+", ""),
    (_DASHES, "-"),
    (r"[`´«»“”¨]", '"'),
    (r"[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{_FILES})", ""),
    (r"[\"\']{2,}", '"'),
    (r"[\.]{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~\)\(\]\[\}\{\|\\\/\*]{1,}", " "),
    (r"\s+\.\s+", " "),
)
_AFTER_MENDING = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    (r"\b\s+\:\s+", ": "),
    (r"(\D[,\./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"\']([\w\W]+)[\"\']$", r"\1"),
    (r"^[\'\_,\-\:;]", ""),
    (r"[\'\_,\-\:\-\+]$", ""),
    (r"^\.\S+$", ""),
)
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})


def clean_caption(caption: str) -> str:
    """A caption as T5 is to read it: cleaned twice, as one pass may uncover what another removes."""
    return _clean(_clean(caption))


def _clean(caption: str) -> str:
    text = unquote_plus(str(caption)).strip().lower()
    text = text.replace("<person>", "person")
    text = re.sub(rf"\b((?:https?:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_SITES}))", "", text)
    text = re.sub(rf"\b((?:www:(?:\/{{1,3}}|[a-zA-Z0-9%])|{_SITES}))", "", text)
    text = _without_tags(text)
    text = _replaced(text, _BEFORE_MENDING)
    if len(re.findall(r"[-_]", text)) > 3:
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(_mended(text)))
    return _replaced(text, _AFTER_MENDING).strip()


def _replaced(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, by in rules:
        text = re.sub(pattern, by, text)
    return text


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def _without_tags(text: str) -> str:
    parser = _Text()
    parser.feed(text)
    parser.close()
    return "".join(parser.pieces)


def _mended(text: str) -> str:
    """Ligatures, wide forms, curled quotes and control characters in plain form.

    ftfy also mends UTF-8 that was read as another encoding; here the rules before it have taken such text apart.
    """
    text = text.translate(_LIGATURES)
    text = "".join(unicodedata.normalize("NFKC", c) if "\uff01" <= c <= "\uffef" else c for c in text)
    text = re.sub(r"[“”„‟]", '"', re.sub(r"[‘’‚‛]", "'", text))
    text = re.sub(r"[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]", "", text.replace("\r\n", "\n").replace("\r", "\n"))
    return unicodedata.normalize("NFC", text)
