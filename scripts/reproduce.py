"""python scripts/reproduce.py --data.source folder --data.root FOLDER.

Make the missing runs behind the published results, and write tables and pictures. docs/campaign.yaml lists the runs. A
finished run in lightning_logs/ is found, an interrupted one is resumed, and a missing one is trained. Its small files
are collected in lightning_logs/reference/. Then the blocks, tables and pictures of README.md and docs/ are written from
the reference runs.

--dry-run says what is missing and how long it would take here. If it is interrupted, run the same command again. To
share the runs, start it in other terminals, or on other machines that share the folder. Unknown flags go to fit.py:
give the images that the reference runs have.
"""

try:
    from overfitting_lab.cli import reported_errors
except ImportError as error:
    remedy = "activate the project's environment, or install it: pip install -e . (or take its namesake off PYTHONPATH)"
    raise SystemExit(f"{error}; {remedy}") from None
except KeyboardInterrupt:
    raise SystemExit(130) from None

from overfitting_lab.campaign.estimate import described
from overfitting_lab.campaign.pages import write_pages
from overfitting_lab.campaign.plan import read_plan
from overfitting_lab.campaign.work import ablate, check_flags, check_images, is_there, states, work
from overfitting_lab.cli.script_parser import ScriptParser, positive
from overfitting_lab.runs import RunError


def main() -> None:
    """Say what is missing, or make it and write the pages."""
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    what = "runs or ablation pages of docs/campaign.yaml, in this order; default: all"
    add("--only", nargs="+", metavar="NAME", help=what)
    add("--seeds", type=positive, help="runs of each setting; default: as docs/campaign.yaml says")
    add("--pages", action="store_true", help="make no run: write the figures from what is there")
    add("--dry-run", action="store_true", help="say what is missing and how long it would take here; change nothing")
    arguments, flags = parser.parse_known_args()
    with reported_errors():
        check_flags(flags)
        campaign = read_plan()
        entries, ablations = campaign.chosen(arguments.only)
        found = states(entries, campaign, arguments.seeds)
        if arguments.dry_run:
            for line in described(found, ablations, campaign):
                print(line)
            return
        failed, missing = 0, [ablation for ablation in ablations if not is_there(ablation)]
        if not arguments.pages and (missing or any(state.left for state in found)):
            check_images(campaign, flags)
            failed = work(found, flags)
            failed += ablate(missing, flags)
        written = " ".join(map(str, write_pages(campaign)))
        print(f"written {written or 'nothing: all pages are up to date'}")
        if failed:
            raise RunError(f"{failed} run{'s' * (failed > 1)} failed; start this again to try once more")


if __name__ == "__main__":
    main()
