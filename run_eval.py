"""Score runs on their test slides: tables, pictures, predictions and one report.

    python run_eval.py --run runs/her2st-ridge
    python run_eval.py --run runs/her2st-ridge runs/her2st-histoprism

Each run gets RUN/eval; several runs are also set side by side in one more folder.
"""

from __future__ import annotations

from contextlib import nullcontext

from histokit.core.options import run
from histokit.evaluate.options import Options


def main(cfg: Options) -> None:
    """Evaluate each run, then compare them."""
    from histokit.core import distributed
    from histokit.core.progress import progress_bar
    from histokit.evaluate import report
    from histokit.evaluate.folders import whole_folder
    from histokit.evaluate.questions import prepare, without_comparisons
    from histokit.evaluate.views import Views

    distributed.check_device(cfg.device)
    cfg = without_comparisons(cfg)
    team = distributed.start(cfg.device)
    questions, jobs = prepare(cfg)
    team.wait()  # nothing is written before every rank has found the runs in order
    results = {}
    for job in jobs:
        listed = questions.headline(job, cfg.protocol, team)
        views = Views(
            job.run, job.cohort, cfg.num_hvg, listed, cfg.device, questions.context, cfg.precision
        )
        with whole_folder(job.out) if team.first else nullcontext() as folder:
            folder = team.gather(folder)[0]
            current = report.Report(job, cfg, questions, views, folder)
            topics = report.topics(current, results, team)
            scores = []
            bar = progress_bar(total=len(team.share(views.work)), desc=job.name, unit="slide")
            with bar:
                for view in views.of(team):  # every test slide: read, predicted and scored once
                    for topic in topics:
                        topic.add(view)
                    scores.append(view.score)
                    bar.update()
            scores = team.gather_shares(scores)
            for topic in topics:
                topic.gather(team, scores)
            if team.first:
                results[job.name] = report.write(current, topics, scores)
        if team.first:
            report.tell(results[job.name], alone=len(cfg.run) == 1)
    if len(cfg.run) > 1 and team.first:
        report.compare(results, questions, cfg)
    team.wait()


if __name__ == "__main__":
    run(main, Options, __doc__)
