"""The console script: `tt-ray COMMAND ...` runs what `python -m MODULE ...` runs, see `terminal.command.COMMANDS`."""

import sys
from importlib import import_module

import tt_ray
from tt_ray.cluster.own_eval import import_own_eval
from tt_ray.terminal.command import COMMANDS, run_command
from tt_ray.terminal.errors import UserError, nearest


def main(arguments: list[str]) -> None:
    """Prints the help, or refuses a command that does not exist."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {command.line}" for name, command in COMMANDS.items()]
        print("\n".join(["usage: tt-ray COMMAND [-h] [OPTIONS]", "", *lines]))
    elif arguments[0] == "--version":
        print(f"tt-ray {tt_ray.__version__}")
    else:
        raise UserError(f"no command {arguments[0]!r}; {nearest(arguments[0], COMMANDS)}")


def run() -> None:
    """Entry point of the script: replaces the arguments by those of the command, and runs it."""
    command = COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    if command is None:
        run_command(main)
        return
    sys.argv = [f"tt-ray {sys.argv[1]}", *sys.argv[2:]]
    import_own_eval()
    module = import_module(command.module)
    name = f"{command.module}.__main__" if hasattr(module, "__path__") else command.module
    run_command(import_module(name).main)


if __name__ == "__main__":
    run()
