#!/bin/sh
# Runs the Dockerfile's steps without Docker: in a clean Debian root file system, as root.
#   deploy/rehearse.sh FOLDER       needs debootstrap, and a package index for pip
# Ends with 0 when a site runs in it, a device has enrolled and its health check is well.
set -eu
root=${1:?"usage: deploy/rehearse.sh FOLDER"}
here=$(cd "$(dirname "$0")/.." && pwd)
if [ ! -d "$root/usr" ]; then
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root"
fi
rm -rf "$root/src" "$root/opt/rengo" "$root/var/lib/rengo"
chroot "$root" userdel rengo 2>/dev/null || true
mkdir -p "$root/src"
tar -C "$here" --exclude=__pycache__ -cf - pyproject.toml constraints.txt README.md LICENSE \
    rengo algorithms broker storage fl_server fl_client iot runtime | tar -C "$root/src" -xf -
cp /etc/resolv.conf "$root/etc/resolv.conf"
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
mountpoint -q "$root/dev" || mount --bind /dev "$root/dev"
site= device=
finish() {
    [ -z "$device" ] || { kill "$device" && wait "$device" || true; }
    [ -z "$site" ] || { kill "$site" && wait "$site" || true; }
    umount "$root/dev" "$root/proc"
}
trap finish EXIT

# the RUN lines themselves, continuation lines joined
run_lines() { sed -e ':a' -e '/\\$/N; s/\\\n//; ta' "$here/deploy/Dockerfile" | sed -n 's/^RUN //p'; }
run_lines | while IFS= read -r line; do
    echo "RUN $line"
    chroot "$root" env EXTRAS=server sh -c "cd /src && $line"
done

# its own process, so that a signal to a background job reaches what runs
as_user() {
    exec chroot --userspec=10001:10001 "$root" env -i HOME=/var/lib/rengo RENGO_HOME="$home" \
        PATH=/opt/rengo/venv/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 "$@"
}
home=/var/lib/rengo/site
as_user rengo up --host=127.0.0.1 --broker-port=18883 --store-port=19000 --devices=0 &
site=$!
tries=0
until token=$(as_user rengo devices invite --json - 2>/dev/null | sed -n 's/.*"token": "\(.*\)",*/\1/p') &&
    [ -n "$token" ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { echo "the site did not start" >&2; exit 1; }
    sleep 1
done
home=/var/lib/rengo/device
start="rengo enroll mqtt://127.0.0.1:18883 --pi --once"
for round in first later; do
    as_user env RENGO_JOIN_TOKEN="$token" $start &
    device=$!
    tries=0
    until (as_user rengo agent status 2>/dev/null) | tee "$root/tmp/status" | grep -q "ready, waiting"; do
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || { echo "the device did not get ready" >&2; exit 1; }
        sleep 1
    done
    echo "HEALTHCHECK at the $round start:"
    cat "$root/tmp/status"
    kill "$device"
    wait "$device" || true
    device=
done
echo "rehearsed"
