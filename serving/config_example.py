"""What `jetloop-robot example-config` prints. tests/test_robot_config.py compares it with config.py."""

EXAMPLE = """\
# robot.toml: the settings of one robot. Lines that begin with # show what holds when nothing is said.
# Relative paths mean: relative to the folder of this file.

# metrics_interval_s = 10          # decisions, latency and blocked rate are reported this often

[robot]
name = "jetbot-1"                  # with the site: this robot's name in every event
site = "lab"
state_dir = "state"                # slots, outbox, flight recorder; must survive a reboot
# ring = "champion"                # or canary: which channel of releases this robot runs

[hardware]
kind = "simulated"                 # or jetbot: an entry point of the group jetloop.hardware
# [hardware.options]               # arguments of that kind

[repository]
url = "http://127.0.0.1:8400"      # serves metadata/ and targets/, signed
root = "root.json"                 # the root of trust, from `jetloop release init`
# poll_s = 30                      # looks this often, also when no wake-up comes
# timeout_s = 10                   # of one request

[mqtt]
host = "127.0.0.1"
# port = 1883
# username = ""
# password = ""                    # then keep this file readable to the robot's user alone
# tls = false
# ca = ""                          # PEM files; a ca turns TLS on
# certificate = ""
# key = ""
# keepalive_s = 15
# reconnect_max_s = 30
# max_in_flight = 20
# max_events_per_s = 500           # after an outage
# settle_s = 5                     # an acknowledged event is kept so long, in case the broker dies before it saved it

[engine]
# target = "cpu-ort-fp32"          # the engines that this machine runs
# python = ""                      # interpreter of the engine worker; empty: the daemon's own
# threads = 1
# start_timeout_s = 30             # until an engine is loaded and warm
# decide_timeout_ms = 150          # a worker that takes longer is ended and started again
# max_latency_ratio = 10           # a new engine is refused when its median is over this many times its passport's
# max_latency_ms = 100             # ... or over this
# max_memory_mb = 1500             # a worker that holds more memory is ended and started again
# max_failures = 3                 # in a row, then the engine before this one takes over

[control]
# max_age_ms = 200                 # no decision on a frame younger than this: motors to zero
# forward_speed = 0.4              # shares of full speed, 0..1
# turn_speed = 0.35
# back_speed = 0.3
# smoothing = 0.3                  # weight of the past in the probability of `blocked`; 0: none
# hysteresis = 0.05                # half width of the band around the model's threshold
# turn = "left"                    # left, right or alternate
# stuck_after_s = 6                # turning for longer: back off, then turn the other way
# back_off_s = 0.5

[probation]                         # of a new engine; what does not hold puts the one before it back
# duration_s = 120                 # of driving; 0: no probation
# max_latency_p99_ms = 120
# min_blocked_rate = 0             # share of decisions that are not `forward`
# max_blocked_rate = 0.95
# max_spin_s = 40                  # of driving without one `forward`
# max_restarts = 1                 # of the engine, after it crashed, hung or answered nonsense
# max_starts = 5                   # starts of the daemon that did not end as they should

[shadow]                           # an engine that sees the same frames and does not drive
# channel = ""                     # champion or canary; empty: none
# frames_per_s = 5                 # at most
# keep_frames = 200                # the most disagreeing ones, in state_dir/disagreements
# keep_mb = 20

[recorder]
# path = ""                        # empty: decisions.csv in robot.state_dir
# max_mb = 20

[outbox]
# max_mb = 64                      # events that wait for the broker
# max_age_h = 720                  # ... and how long, in hours that the robot runs

[page]                             # the picture, what it does, stop and resume; /metrics for Prometheus
# bind = "127.0.0.1"               # 0.0.0.0: others can reach it, and need the token
# port = 8420                      # 0: no page
# token = ""
# hosts = []                       # names under which a browser finds this robot, beside its own
# frames_per_s = 5

[capture]                          # images that people label on the robot
# source = ""                      # person or house; empty: each session is a source of its own
# place = "unknown"
# camera = "unknown"
# licence = "unknown"
# safety_distance_cm = 0           # nearer than this is `blocked`; 0: unknown
# max_mb = 500                     # of all sessions on this robot
# min_free_mb = 200                # that capturing leaves of the disk

[upload]                           # where finished sessions go
# url = ""                         # s3://bucket/folder, http(s)://host/folder; empty: they stay on the robot
# token = ""                       # for http(s)
# endpoint = ""                    # of S3; empty: Amazon's. Keys come from ~/.aws or the environment
# part_mb = 8
# timeout_s = 30
# retry_max_s = 300
"""
