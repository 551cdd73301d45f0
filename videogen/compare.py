"""Puts results of videogen.evaluate side by side, or says why they cannot be compared.

    python -m videogen.compare runs/a/evaluation.json runs/b/evaluation.json --out=comparison.html

Results are compared only where they were measured alike: the same protocol, clips, counts and seed. Otherwise the first
field that differs is named. What differs between the models (step, sampler, averaged weights) is no reason to refuse.

Results of tokbench protocols are also ranked, by every measure that all have, with the rank correlations of these:

    python -m videogen.compare runs/*/tokbench.json --ranking=ranking.html

Results of rate_distortion of several tokenizers are drawn on one picture, with the codecs that stand beside the first:

    python -m videogen.compare runs/*/rate_distortion.json --rates=rates.png
"""

from absl import flags, logging

from videogen import app

OUT = flags.DEFINE_string("out", None, "HTML file to write as well.")
RANKING = flags.DEFINE_string("ranking", None, "File for the ranking of tokbench results: .json, .md or .html.")
RATES = flags.DEFINE_string("rates", None, "PNG file for the curves of rate_distortion results.")


def main(files: list[str]) -> None:
    """Runs the command."""
    from videogen.configuration import check_writable
    from videogen.errors import UserError
    from videogen.reporting.comparison import compare
    from videogen.reporting.ranking import write_ranking
    from videogen.reporting.rates import write_leaderboard

    for flag in (OUT, RANKING, RATES):
        if flag.value:
            check_writable(flag.value, f"--{flag.name}")
    if RATES.value:
        if given := [flag.name for flag in (OUT, RANKING) if flag.value]:
            raise UserError(f"--{given[0]} and --rates are two different pages: run the command once for each")
        print(write_leaderboard(files, RATES.value))
        logging.info("wrote %s", RATES.value)
        return
    print(compare(files, OUT.value))
    if OUT.value:
        logging.info("wrote %s", OUT.value)
    if RANKING.value:
        print(write_ranking(files, RANKING.value))
        logging.info("wrote %s", RANKING.value)


if __name__ == "__main__":
    app.run(main, takes_files=True)
