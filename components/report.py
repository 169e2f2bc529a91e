"""Component ``report``: one page that shows what the run made and where everything came from."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components import images


@images.ops
def report(
    raw: Input[Dataset],
    base: Input[Model],
    shards: Input[Dataset],
    training: Input[Model],
    model: Input[Model],
    samples: Input[Dataset],
    evaluation: Input[Dataset],
    registration: Input[Artifact],
    report: Output[Artifact],
    page: Output[HTML],
    artifacts: str,
    title: str = "",
) -> None:
    """Writes report.html.

    Args:
        artifacts: URI of the folder of all steps' outputs.
        title: the page's heading.
    """
    from atelier.steps.artifact import read_input, write_output
    from atelier.steps.report import publish_page, run

    made = run(
        raw=read_input(raw),
        base=read_input(base),
        shards=read_input(shards),
        training=read_input(training),
        model=read_input(model),
        samples=read_input(samples),
        evaluation=read_input(evaluation),
        registration=read_input(registration),
        title=title,
        artifacts=artifacts,
    )
    write_output(report, made)
    publish_page(page, made)
