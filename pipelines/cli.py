"""`jetloop`: the menu of commands. Each lives in the module that does the work."""

import click

from serving.command_line import LazyGroup, run

COMMANDS = {
    "ingest": ("pipelines.ingest:command", "Add a session zip, a notebook's dataset.zip or a folder to the data."),
    "receive": ("pipelines.receive:command", "Take the sessions that robots upload over HTTP, until ingest."),
    "simulate": ("simulator.cli:group", "Make labelled sessions in the arena; watch networks drive in it."),
    "mlflow": ("pipelines.tracking_server:command", "Start the MLflow server: compare runs, set the alias champion."),
    "release": ("pipelines.release.cli:group", "Keys, gates, signed releases: the way from an alias to the robots."),
    "broker": ("telemetry.broker:command", "Start the embedded MQTT broker, for a lab bench."),
    "bridge": ("telemetry.bridge:command", "Pass on what the robots tell from MQTT to Kafka."),
    "collector": ("telemetry.collector:command", "Store what the robots tell, each event once."),
    "store": ("telemetry.store_cli:group", "The store itself: status, upgrade, rollups counted anew."),
    "archive": ("telemetry.archive:group", "Events as Parquet in a folder or on S3: write, ask, keep for years."),
    "console": ("telemetry.console:command", "The web page: robots, live events, releases."),
    "trace": ("telemetry.trace:command", "From an event to the engine, run, commit and data that made it."),
    "demo": ("pipelines.demo.command:command", "The whole loop on this machine, two rounds, in minutes."),
}


@click.group(cls=LazyGroup, commands_at=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jetloop")
def group() -> None:
    """Trains, checks, releases and runs the models of a fleet of Jetbots.

    \b
    jetloop ingest dataset.zip     images in
    dvc repro                      retrain
    jetloop mlflow                 compare and promote: set the alias `champion`
    jetloop release serve          what is promoted is checked, compiled, signed, published
    jetloop-robot run              on the robot: pulls what is released, and drives
    """


def main() -> None:
    run(group)


if __name__ == "__main__":
    main()
