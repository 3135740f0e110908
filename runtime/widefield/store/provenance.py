"""What a picture says about itself to software that is not ours: made by a trained model, by this program.

    digital source type    IPTC's word for how it came to be: drawn by a model, or a photograph that a model altered
    XMP packet             that, the generator, its bundle's hash and the seed: TIFF's tag 700, PNG's iTXt, Deep Zoom's

All of it comes from the metadata of the picture's spec, whose keys are below: so a resumed picture keeps what it said.
A prompt is in there only where somebody asked to record it.

Source: IPTC Photo Metadata Standard 2025.1 (Iptc4xmpExt); IPTC NewsCodes, Digital Source Type; Adobe XMP part 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import quoteattr

from widefield.errors import BadRequest

SOFTWARE = "Widefield"
SCHEME = "http://cv.iptc.org/newscodes/digitalsourcetype/"
DRAWN, ALTERED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
SOURCE_TYPES = (DRAWN, ALTERED, "algorithmicallyEnhanced")
# Keys of a spec's metadata.
SOURCE_TYPE, GENERATOR, BUNDLE_NAME, BUNDLE, SEED, PROMPT = (
    "digital_source_type", "software", "bundle_name", "bundle", "drawn_seed", "prompt",
)  # fmt: skip
_IPTC, _XMP, _OURS = "Iptc4xmpExt", "xmp", "widefield"
_NAMESPACES = {
    _XMP: "http://ns.adobe.com/xap/1.0/",
    _IPTC: "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    _OURS: "urn:widefield:picture:1.0:",
}
_PROPERTIES = {
    f"{_IPTC}:AISystemUsed": BUNDLE_NAME,
    f"{_IPTC}:AIPromptInformation": PROMPT,
    f"{_OURS}:BundleSHA256": BUNDLE,
    f"{_OURS}:Seed": SEED,
}


def source_type(metadata: Mapping[str, str]) -> str:
    """The URI of a picture's digital source type: what its metadata says, or that a model drew it."""
    return SCHEME + metadata.get(SOURCE_TYPE, DRAWN)


def parse_source_type(text: str) -> str:
    """One of SOURCE_TYPES, by its name or its URI; raises BadRequest for another."""
    name = text.removeprefix(SCHEME)
    if name not in SOURCE_TYPES:
        known = ", ".join(SOURCE_TYPES)
        raise BadRequest(f"{text!r} is no digital source type that what a model made can have; take one of {known}")
    return name


def xmp_packet(metadata: Mapping[str, str]) -> bytes:
    """An XMP packet that says what a picture with that metadata is. The same metadata, the same bytes.

    Metadata without a source type is of pictures that said nothing else yet: theirs stays as it was.
    """
    metadata = metadata if SOURCE_TYPE in metadata else {}
    tool = metadata.get(GENERATOR, SOFTWARE)
    said = {f"{_XMP}:CreatorTool": tool, f"{_IPTC}:DigitalSourceType": source_type(metadata)}
    said |= {name: metadata[key] for name, key in _PROPERTIES.items() if key in metadata}
    used = {name.partition(":")[0] for name in said}
    spaces = " ".join(f'xmlns:{prefix}="{uri}"' for prefix, uri in _NAMESPACES.items() if prefix in used)
    values = " ".join(f"{name}={quoteattr(_printable(value))}" for name, value in said.items())
    return (
        '<?xpacket begin="\N{ZERO WIDTH NO-BREAK SPACE}" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" {spaces} {values}/>'
        '</rdf:RDF></x:xmpmeta>\n<?xpacket end="r"?>'
    ).encode()


def _printable(text: str) -> str:
    """Without what XML 1.0 cannot hold: control characters and lone surrogates."""
    return "".join(c if c in "\t\n\r" or (c >= " " and not "\ud800" <= c <= "\udfff") else "\ufffd" for c in text)
