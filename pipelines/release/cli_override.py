"""`jetloop release override`: a person decides to release a version although it fails a gate."""

import os
from pathlib import Path

import click

from serving.contracts.releases import MODEL_NAME
from serving.errors import OperatorError, RejectedError


@click.command("override")
@click.argument("version")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default="build/release",
    show_default=True,
    help="Release folder, in which the version was refused.",
)
@click.option("--gate", required=True, help="Name of the gate, as in the tag gate.<name> of the version.")
@click.option("--reason", required=True, help="Why; it stays in the passport of the engine.")
@click.option("--by", "name", required=True, help="Your name, as in FOLDER/approvers/<name>.pub.")
@click.option(
    "--key",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    required=True,
    help="Your ed25519 private key (PEM). If it is encrypted: JETLOOP_OVERRIDE_PASSPHRASE.",
)
@click.option("--model", default=MODEL_NAME, show_default=True, help="Registered model.")
def command(version: str, folder: Path, gate: str, reason: str, name: str, key: Path, model: str) -> None:
    """Decides that VERSION is released although it fails a gate, and signs that with your key.

    The version must have been judged once: set the alias on it first. The service checks the signature against
    FOLDER/approvers/NAME.pub, which whoever runs it has put there, judges the version again at its next look, and
    records the decision in the passport of every engine. The gates parity.* can not be overridden, nor can files that
    are not the registered ones. To take a decision back before it is used, delete its file.

    \b
    Example:
      openssl genpkey -algorithm ed25519 -out anna.pem
      openssl pkey -in anna.pem -pubout -out build/release/approvers/anna.pub    # by whoever runs the service
      jetloop release override 7 --gate blocked_recall --by anna --key anna.pem \\
          --reason "one mislabelled drive, see the notes of 23 November"
    """
    import msgspec

    from pipelines.release import gates, overrides
    from pipelines.release.database import Database
    from pipelines.release.journal import Journal, utc_now
    from serving.contracts.releases import Override

    if not gates.overridable(gate):
        raise RejectedError(f"the gate {gate} can not be overridden: the engine is not the network that was judged")
    database = Database.open_to_read(folder)
    judged = Journal(database).last_of(version) if database else None
    if judged is None:
        raise OperatorError(f"version {version} was never judged in {folder}: set the alias on it first")
    failed = [one.name for one in judged.gates if not one.passed]
    if gate not in failed:
        raise OperatorError(f"version {version} does not fail the gate {gate}; it fails: {', '.join(failed) or 'none'}")
    fields = {
        **{"model_name": model, "model_version": version, "onnx_sha256": judged.onnx_sha256, "gate": gate},
        **{"reason": reason, "by": name, "decided_at": utc_now(), "signature": ""},
    }
    try:
        decision = msgspec.convert(fields, Override)
    except msgspec.ValidationError as problem:
        raise OperatorError(f"this cannot be written down ({problem})") from None
    passphrase = os.environ.get("JETLOOP_OVERRIDE_PASSPHRASE", "").encode()
    signed = overrides.sign(decision, overrides.private_key(key, passphrase))
    path = overrides.Overrides(folder).save(signed)
    click.echo(f"decided {name}: version {version} may be released although it fails {gate}")
    click.echo(f"wrote   {path}")
    click.echo("next    the service judges the version again while an alias is on it")
