"""Put the Qwen-Image worker on a RunPod serverless endpoint and prove that it serves.

Builds and pushes the image, creates or updates the endpoint through RunPod's REST API v2, waits until new workers
answer, sends test jobs (health, a generated picture, an edit), and puts the old configuration back where they fail.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping

from rich.console import Console

from qwen_deploy import commands, configuration, display, image
from qwen_deploy.errors import DeployError, NotServing, UsageError
from qwen_deploy.intent import Intent, read_intent
from qwen_deploy.options import COMMANDS, command_parser, parser
from qwen_deploy.proof import prove, require_kept, update_endpoint
from qwen_deploy.rollback import roll_back, undo
from qwen_deploy.screen import Screen
from qwen_deploy.session import ROOT, Session, open_session


def deploy(screen: Screen, options, open_api: Callable[[], Session]) -> int:
    """From the working tree to an endpoint that is proved to serve. The exit code."""
    tag = options.tag or image.source_version(ROOT)
    one = image.parse_image(options.image_name, tag, options.registry)
    if options.build_only or options.push_only:
        return make_image(screen, options, one, build=not options.push_only, push=not options.build_only)
    if not one.pullable and not options.skip_build and not options.dry_run:
        make_image(screen, options, one, build=True, push=False)
        screen.warn(
            "RunPod pulls from a registry: --registry docker.io/<you> pushes there and deploys. Nothing deployed."
        )
        return 0
    if tag == "latest" or not one.pullable:
        wrong = "--tag must not be latest" if tag == "latest" else "--registry is needed"
        raise UsageError(f"{wrong}: RunPod's hosts must be able to pull exactly this build, not {one.reference}.")

    session = open_api()
    intent = read_intent(session, options, one, options.worker_version or tag)
    display.show_intent(screen, options, one, intent)
    if options.dry_run:
        return 0
    if not options.yes and not screen.confirm("Go on?"):
        raise UsageError("Nothing was done: it needs a yes, on a terminal or as --yes.")
    if not options.skip_build:
        make_image(screen, options, one, build=True, push=True)
    return ship(session, options, intent)


def make_image(screen: Screen, options, one: image.Image, build: bool, push: bool) -> int:
    tool = image.find_tool(options.builder)
    if build:
        screen.heading(f"Building {one.reference} with {tool}")
        image.run_command(image.build_command(tool, one, options), ROOT, screen.say)
    if push:
        if not one.pullable:
            raise UsageError(f"--registry is needed to push {one.reference}, e.g. docker.io/<you>.")
        screen.heading(f"Pushing {one.reference}")
        image.run_command(image.push_command(tool, one), ROOT, screen.say)
    return 0


def ship(session: Session, options, intent: Intent) -> int:
    """Make the change, prove it, and undo it where it does not serve or the operator interrupts. The exit code."""
    screen = session.screen
    require_unchanged(session, intent)
    saved = session.records.save(intent.endpoint) if intent.endpoint and intent.changes else None
    code, check = 1, False
    try:
        endpoint, before = change(session, options, intent)
        if not options.no_test:
            prove(session, options, intent, endpoint, before)
        code = 0
    except KeyboardInterrupt:
        screen.bad("Interrupted.")
        code = 130
    except DeployError as failure:
        screen.bad(str(failure))
        check = isinstance(failure, NotServing)
    finally:  # a fault of this program too, whose traceback follows, must not leave a change half proved
        if code:
            undo(session, options, intent, saved, check)
    if code:
        return code
    if options.no_test:
        screen.warn(
            f"Endpoint {endpoint['id']} has {intent.target['image']}, untested: nobody knows whether it serves."
        )
    else:
        screen.good(f"Endpoint {endpoint['id']} serves {intent.target['image']}.")
    display.show_use(screen, endpoint, saved)
    return 0


def require_unchanged(session: Session, intent: Intent) -> None:
    """A build takes long: what was planned on must still be there, or a rollback would undo somebody else's change."""
    if intent.endpoint is None:
        return
    found = configuration.changes(intent.present, configuration.flatten(session.api.endpoint(intent.endpoint["id"])))
    if found:
        words = ", ".join(change.field for change in found)
        raise DeployError(f"Endpoint {intent.endpoint['id']} was changed since the plan ({words}): run this again.")


def change(session: Session, options, intent: Intent) -> tuple[dict, int | None]:
    """Create or update. The endpoint, and its version before where workers will be replaced.

    Falling back is forbidden until the test jobs are through.
    """
    if not intent.changes:
        session.screen.good("The endpoint is as wanted: nothing to change.")
        return intent.endpoint, None
    if not options.no_test:
        intent = intent.with_fallback_forbidden()
    if intent.endpoint is None:
        session.screen.heading("Creating the endpoint")
        endpoint = session.api.create(configuration.create_body(intent.target))
        session.screen.good(f"Endpoint {endpoint['id']} is there.")
        before = None
    else:
        session.screen.heading(f"Updating endpoint {intent.endpoint['id']}")
        endpoint, before = update_endpoint(session, intent.endpoint["id"], intent.present, intent.target)
    require_kept(session, endpoint["id"], intent.target)
    return endpoint, before


def rollback(screen: Screen, options, open_api: Callable[[], Session]) -> int:
    """To the newest saved configuration that differs from the present one, or to the one named. The exit code."""
    session = open_api()
    endpoint = session.api.endpoint(options.endpoint_id)
    present, records = configuration.flatten(endpoint), session.records.saved(options.endpoint_id)
    if options.list:
        display.show_records(screen, records)
        return 0
    chosen = [session.records.read(options.to)] if options.to else records
    differing = [one for one in chosen if configuration.changes(present, configuration.flatten(one.endpoint))]
    if not differing:
        raise DeployError(f"There is no other saved configuration of endpoint {options.endpoint_id} to go back to.")
    saved = differing[0]
    if saved.endpoint["id"] != options.endpoint_id:
        raise UsageError(f"--to is a configuration of {saved.endpoint['id']}, not of {options.endpoint_id}.")
    screen.say(f"Back to what was saved at {saved.saved_at}:")
    display.show_changes(screen, configuration.changes(present, configuration.flatten(saved.endpoint)))
    if options.dry_run:
        return 0
    if not options.yes and not screen.confirm("Go on?"):
        raise UsageError("Nothing was done: it needs a yes, on a terminal or as --yes.")
    session.records.save(endpoint)
    return 0 if roll_back(session, options, saved, check=not options.no_test) else 1


ACTIONS = {"deploy": deploy, "rollback": rollback}


def main(
    arguments: list[str] | None = None,
    environment: Mapping[str, str] = os.environ,
    console: Console | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """The exit code: 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "deploy"
    options = (parser(__doc__) if name == "deploy" else command_parser(name)).parse_args(arguments)
    screen = Screen(console)

    def open_api() -> Session:
        session = open_session(screen, options.state, environment)
        session.api.client.pause = pause
        return session

    try:
        return (ACTIONS | commands.ACTIONS)[name](screen, options, open_api)
    except UsageError as error:
        screen.bad(str(error))
        return 2
    except DeployError as error:
        screen.bad(str(error))
        return 1
    except KeyboardInterrupt:
        screen.bad("Interrupted. No endpoint was being changed.")
        return 130


def interrupt(*_) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # A closed terminal or a stopped CI job must not leave a change half proved: as Ctrl-C, they roll it back.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    sys.exit(main())
