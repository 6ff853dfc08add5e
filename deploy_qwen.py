"""Put the Qwen-Image worker on a RunPod serverless endpoint and prove that it serves.

Builds and pushes the image, creates or updates the endpoint through RunPod's REST API v2, waits until new workers
answer, sends test jobs (health, a generated picture, an edit), and puts the old configuration back where they fail.
"""

import os
import signal
import sys
from collections.abc import Mapping

try:
    from rich.console import Console

    from qwen_deploy import commands, configuration, display, spending, storage_commands, upkeep
    from qwen_deploy.build_plan import show_build, show_cache_hint, show_local_build
    from qwen_deploy.endpoint_display import show_records
    from qwen_deploy.endpoints import find_endpoint
    from qwen_deploy.errors import DeployError, NotServing, UsageError
    from qwen_deploy.image import (
        Image,
        build_command,
        find_tool,
        parse_image,
        parse_reference,
        push_command,
        run_command,
        source_version,
    )
    from qwen_deploy.intent import Intent, read_intent
    from qwen_deploy.options import COMMANDS, DeployOptions, RollbackOptions, read_options
    from qwen_deploy.play import play
    from qwen_deploy.proof import prove, require_kept, update_endpoint
    from qwen_deploy.purchase import require_offered
    from qwen_deploy.recommended import baked_argument
    from qwen_deploy.records import saved_records
    from qwen_deploy.rollback import roll_back, undo
    from qwen_deploy.runpod.client import REAL_TIME, Clock
    from qwen_deploy.runpod.schemas import Endpoint
    from qwen_deploy.screen import Screen, require_yes
    from qwen_deploy.session import ROOT, Action, Session, SessionOpener, open_session
except ImportError as failure:
    from qwen_deploy.packages import explain_missing

    explain_missing(failure, "deploy_qwen.py", "deploy-tools", __doc__ or "")


def deploy(screen: Screen, options: DeployOptions, open_session: SessionOpener) -> int:
    """From the working tree to an endpoint that is proved to serve. The exit code."""
    image = choose_image(options)
    options.build_arg += baked_argument(options.models, options.build_arg)
    if options.build_only or options.push_only or not (image.pullable or options.skip_build):
        return stay_here(screen, options, image)
    if image.tag == "latest" or not image.pullable:
        mistake = "--tag must not be latest" if image.tag == "latest" else "--registry is needed"
        raise UsageError(f"{mistake}: RunPod's hosts must be able to pull exactly this build, not {image.reference}.")

    session = open_session()
    intent = read_intent(session, options, image, options.worker_version or image.tag)
    if not options.skip_build:
        show_build(screen, options, image)
    display.show_intent(screen, options, image, intent)
    if options.dry_run:
        return 0
    require_yes(screen, options.yes)
    if not options.skip_build:
        make_image(screen, options, image, build=True, push=True)
    return ship(session, options, intent)


def stay_here(screen: Screen, options: DeployOptions, image: Image) -> int:
    """Build or push alone, without an endpoint and without an account. The exit code."""
    if not options.push_only:
        show_local_build(screen, options, image)
        if options.dry_run:
            screen.say("$ " + " ".join(build_command(find_tool(options.builder), image, options)))
            return 0
        require_no_objection(screen, options.yes)
    make_image(screen, options, image, build=not options.push_only, push=options.push_only)
    if not options.build_only and not options.push_only:
        screen.warn(
            "RunPod pulls from a registry: --registry docker.io/<you> pushes there and deploys. Nothing deployed."
        )
    return 0


def choose_image(options: DeployOptions) -> Image:
    """The image to build, or with --image the one that is there. Raises `UsageError`."""
    if not options.image:
        return parse_image(options.image_name, options.tag or source_version(ROOT), options.registry)
    given = {"--registry": options.registry, "--tag": options.tag, "--build-arg": options.build_arg}
    given |= {"--build-only": options.build_only, "--push-only": options.push_only}
    if beside := [name for name, value in given.items() if value]:
        raise UsageError(f"{', '.join(beside)} has no meaning beside --image, which names an image that is there.")
    options.skip_build = True
    return parse_reference(options.image)


def require_no_objection(screen: Screen, given: bool) -> None:
    """A build costs no money: it is asked for on a terminal alone. Raises `UsageError` for a no."""
    if screen.console.is_terminal:
        require_yes(screen, given)


def make_image(screen: Screen, options: DeployOptions, image: Image, build: bool, push: bool) -> None:
    tool = find_tool(options.builder)
    if build:
        screen.heading(f"Building {image.reference} with {tool}")
        run_command(build_command(tool, image, options), ROOT, screen.say)
    if push:
        if not image.pullable:
            raise UsageError(f"--registry is needed to push {image.reference}, e.g. docker.io/<you>.")
        screen.heading(f"Pushing {image.reference}")
        run_command(push_command(tool, image), ROOT, screen.say)


def ship(session: Session, options: DeployOptions, intent: Intent) -> int:
    """Make the change, prove it, and undo it where it does not serve or the operator interrupts. The exit code."""
    screen, image = session.screen, intent.target["image"]
    require_unchanged(session, intent)
    require_offered(session.api, intent.purchase)
    saved = session.records.save(intent.endpoint) if intent.endpoint and intent.changes else None
    code, check = 1, False
    try:
        endpoint, version_before = change(session, options, intent)
        if not options.no_test:
            prove(session, options, intent, endpoint, version_before)
        code = 0
    except KeyboardInterrupt:
        screen.bad("Interrupted.")
        code = 130
    except DeployError as failure:
        screen.bad(str(failure))
        check = isinstance(failure, NotServing)
    else:
        if options.no_test:
            screen.warn(f"Endpoint {endpoint['id']} has {image}, untested: nobody knows whether it serves.")
        else:
            screen.good(f"Endpoint {endpoint['id']} serves {image}.")
        display.show_use(screen, endpoint, saved)
        show_cache_hint(screen, endpoint, intent.target["env"], intent.tasks)
    finally:  # a fault of this program too, whose traceback follows, must not leave a change half proved
        if code:
            undo(session, options, intent, saved, check)
    return code


def require_unchanged(session: Session, intent: Intent) -> None:
    """A build takes long. Raises `DeployError` for an endpoint that somebody has changed since the plan.

    A rollback would undo that change as well.
    """
    if intent.endpoint is None or intent.present is None:
        return
    endpoint = session.api.endpoint(intent.endpoint["id"])
    changes = configuration.changes(intent.present, configuration.flatten(endpoint))
    if changes:
        fields = ", ".join(change.field for change in changes)
        raise DeployError(f"Endpoint {endpoint['id']} was changed since the plan ({fields}): run this again.")


def change(session: Session, options: DeployOptions, intent: Intent) -> tuple[Endpoint, int | None]:
    """Create or update. The endpoint, and its version before where workers will be replaced.

    Falling back is forbidden until the test jobs are through.
    """
    if not intent.changes and intent.endpoint:
        session.screen.good("The endpoint is as wanted: nothing to change.")
        return intent.endpoint, None
    if not options.no_test:
        intent = intent.with_fallback_forbidden()
    if intent.endpoint is None:
        session.screen.heading("Creating the endpoint")
        endpoint = session.api.create(configuration.create_body(intent.target))
        session.screen.good(f"Endpoint {endpoint['id']} is there.")
        version_before = None
    else:
        session.screen.heading(f"Updating endpoint {intent.endpoint['id']}")
        endpoint, version_before = update_endpoint(session, intent.endpoint["id"], intent.present or {}, intent.target)
    require_kept(session, endpoint["id"], intent.target)
    return endpoint, version_before


def rollback(screen: Screen, options: RollbackOptions, open_session: SessionOpener) -> int:
    """To the newest saved configuration that differs from the present one, or to the one named. The exit code."""
    if options.list:  # reads this machine's files alone, and so needs no key
        show_records(screen, saved_records(options.state, options.endpoint_id, options.name))
        return 0
    session = open_session()
    endpoint = find_endpoint(session.api, options)
    endpoint_id = endpoint["id"]
    present, records = configuration.flatten(endpoint), session.records.saved(endpoint_id)
    candidates = [session.records.read_named(endpoint_id, options.to)] if options.to else records
    for saved in candidates:
        if changes := configuration.changes(present, configuration.flatten(saved.endpoint)):
            break
    else:
        raise DeployError(f"There is no other saved configuration of endpoint {endpoint_id} to go back to.")
    if saved.endpoint["id"] != endpoint_id:
        raise UsageError(f"--to is a configuration of {saved.endpoint['id']}, not of {endpoint_id}.")
    screen.say(f"Back to what was saved at {saved.saved_at}:")
    display.show_changes(screen, changes)
    if options.dry_run:
        return 0
    require_yes(screen, options.yes)
    session.records.save(endpoint)
    return 0 if roll_back(session, options, saved, check=not options.no_test) else 1


ACTIONS: dict[str, Action] = {
    "deploy": deploy, "rollback": rollback, "play": play, "spent": spending.spent, **commands.ACTIONS, **upkeep.ACTIONS,
    **storage_commands.ACTIONS,
}  # fmt: skip


def main(
    arguments: list[str] | None = None,
    environment: Mapping[str, str] = os.environ,
    console: Console | None = None,
    clock: Clock = REAL_TIME,
) -> int:
    """The exit code: 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    name = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "deploy"
    options = read_options(name, arguments, __doc__ or "")
    screen = Screen(console)
    try:
        return ACTIONS[name](screen, options, lambda: open_session(screen, options.state, environment, clock))
    except UsageError as error:
        screen.bad(str(error))
        return 2
    except DeployError as error:
        screen.bad(str(error))
        return 1
    except KeyboardInterrupt:
        # A deployment or rollback that had begun to change something has undone it, and returned its own exit code.
        is_changing = name in upkeep.CHANGING
        look = "`list` says whether the change was made." if is_changing else "No endpoint was being changed."
        screen.bad(f"Interrupted. {look}")
        return 130


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # A closed terminal or a stopped CI job must not leave a change half proved: they interrupt as Ctrl-C does, and the
    # change is rolled back.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    sys.exit(main())
