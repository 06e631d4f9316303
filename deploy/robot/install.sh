#!/bin/bash
# Installs the robot's daemon on this machine, or brings it up to date. Run as root:
#
#   deploy/robot/install.sh jetloop-0.1.0-py3-none-any.whl
#
# Reads: the wheel (`uv build --wheel` makes it) and the two files beside this script. Writes: /srv/jetloop (the daemon),
# /etc/jetloop (robot.toml, kept when it is there), /var/lib/jetloop (its state), and the systemd unit. PYTHON names an
# interpreter of version 3.11; JetPack has none, `UV_PYTHON_INSTALL_DIR=/srv/python uv python install 3.11` brings one.
set -euo pipefail

wheel=${1:?usage: install.sh WHEEL}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3.11}
config=/etc/jetloop/robot.toml

[ "$(id -u)" = 0 ] || { echo "run this as root" >&2; exit 1; }
[ -f "$wheel" ] || { echo "$wheel is not there" >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
    { echo "PYTHON=$python is no Python 3.11; UV_PYTHON_INSTALL_DIR=/srv/python uv python install 3.11 brings one" >&2
      exit 1; }
case $("$python" -c 'import sys; print(sys.base_prefix)') in
    /home/*|/root/*) echo "$python lies in a home directory, which the service does not see; install it in /srv" >&2
                     exit 1 ;;
esac

getent group i2c >/dev/null || groupadd --system i2c
getent passwd jetloop >/dev/null ||
    useradd --system --home-dir /var/lib/jetloop --shell /usr/sbin/nologin --groups video,i2c jetloop

[ -x /srv/jetloop/bin/python ] || "$python" -m venv /srv/jetloop
/srv/jetloop/bin/python -m pip install --quiet --upgrade --only-binary=:all: \
    -c "$here/constraints.txt" "$wheel[device]"
# Once more, alone: pip keeps what is there when the new wheel has the same version.
/srv/jetloop/bin/python -m pip install --quiet --force-reinstall --no-deps "$wheel"

install -d -m 750 -o root -g jetloop /etc/jetloop
install -d -m 750 -o jetloop -g jetloop /var/lib/jetloop
if [ ! -e "$config" ]; then
    /srv/jetloop/bin/jetloop-robot example-config |
        sed -e 's|^state_dir = .*|state_dir = "/var/lib/jetloop"|' -e 's|^kind = .*|kind = "jetbot"|' > "$config.new"
    chown root:jetloop "$config.new"
    chmod 640 "$config.new"
    mv "$config.new" "$config"
    echo "now set name, site, repository and broker in $config, and copy root.json beside it"
fi
install -m 644 "$here/jetloop-robot.service" /etc/systemd/system/
systemctl daemon-reload
systemctl enable jetloop-robot
echo "then: jetloop-robot doctor --config $config; systemctl restart jetloop-robot"
