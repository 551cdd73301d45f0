"""Puts results of videogen.evaluate side by side, or says why they cannot be compared.

    python -m videogen.compare runs/a/evaluation.json runs/b/evaluation.json --out=comparison.html

Results are compared only where they were measured alike: the same protocol, clips, counts and seed. Otherwise the first
field that differs is named. What differs between the models (step, sampler, averaged weights) is no reason to refuse.
"""

from absl import flags, logging

from videogen import app

OUT = flags.DEFINE_string("out", None, "HTML file to write as well.")


def main(files: list[str]) -> None:
    """Runs the command."""
    from videogen.configuration import check_writable
    from videogen.reporting.comparison import compare

    if OUT.value:
        check_writable(OUT.value, "--out")
    print(compare(files, OUT.value))
    if OUT.value:
        logging.info("wrote %s", OUT.value)


if __name__ == "__main__":
    app.run(main, takes_files=True)
