#!/bin/sh
# Runs the Dockerfile's steps and compose.yaml's services without Docker, as root:
#   deploy/rehearse.sh FOLDER
# in a clean Debian root file system below FOLDER. Each service has processes, mounts and volumes of
# its own, a root file system that it cannot write and no rights, as compose.yaml says, and is started
# again when it ends. Needs debootstrap, docker-compose 1.29, ip, and a package index for pip.
# Ends with 0 when a device has enrolled and trained, and goes on to train after each service was killed.
set -eu
work=${1:?"usage: deploy/rehearse.sh FOLDER"}
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$work" && work=$(cd "$work" && pwd)
root=$work/root net=rengo-rehearsal
export RENGO_ADVERTISE=10.99.0.1

if [ ! -d "$root/usr" ]; then
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root"
fi
rm -rf "$root/src" "$root/opt/rengo" "$work/site" "$work/device" "$work/run"
chroot "$root" userdel rengo 2>/dev/null || true
mkdir -p "$root/src" "$root/var/lib/rengo" "$work/run"
tar -C "$here" --exclude=__pycache__ -cf - pyproject.toml constraints.txt README.md LICENSE \
    rengo algorithms broker storage fl_server fl_client iot runtime rengo_start.py | tar -C "$root/src" -xf -
# the way to the package indexes is this machine's
cp /etc/resolv.conf "$root/etc/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
# as in the base image: a package starts no service
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" && chmod +x "$root/usr/sbin/policy-rc.d"
mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
mountpoint -q "$root/dev" || mount --bind /dev "$root/dev"

finish() {
    for loop in "$work"/run/*.loop; do
        [ ! -e "$loop" ] || kill "$(cat "$loop")" || true
    done
    wait
    ip netns del "$net" 2>/dev/null || true
    umount "$root/dev" "$root/proc"
}
trap finish EXIT

# the RUN lines themselves, continuation lines joined
run_lines() { sed -e ':a' -e '/\\$/N; s/\\\n//; ta' "$here/deploy/Dockerfile" | sed -n 's/^RUN //p'; }
run_lines | while IFS= read -r line; do
    echo "RUN $line"
    chroot "$root" env EXTRAS=server sh -c "cd /src && $line" </dev/null
done

# what compose.yaml says of a service, as words for `eval set --`
docker-compose --profile device -f "$here/deploy/compose.yaml" config >"$work/run/config.yaml"
words() {
    python3 - "$work/run/config.yaml" "$1" "$2" <<'END'
import shlex, sys, yaml
service = yaml.safe_load(open(sys.argv[1]))["services"][sys.argv[2]]
said = service["command"] if sys.argv[3] == "command" else service["healthcheck"]["test"][1:]
print(shlex.join(str(word).replace("$$", "$") for word in said))
END
}

# a network of the site's own, where its services have their names
ip netns add "$net"
ip -n "$net" link set lo up
ip -n "$net" addr add "$RENGO_ADVERTISE/32" dev lo
echo "127.0.0.1 localhost broker store" >"$root/etc/hosts"

rights="--reuid=10001 --regid=10001 --clear-groups --bounding-set=-all --no-new-privs"
variables="HOME=/var/lib/rengo RENGO_HOME=/var/lib/rengo PATH=/opt/rengo/venv/bin:/usr/bin:/bin
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1"
# contained VOLUME WORDS...: becomes the process, which ends with what it started
contained() {
    volume=$1 && shift
    [ -d "$work/$volume" ] || install -d -o 10001 -g 10001 -m 0700 "$work/$volume"
    exec ip netns exec "$net" unshare --mount --pid --fork sh -ec '
        root=$0 volume=$1 && shift
        mount --rbind "$root" "$root" && mount -o remount,bind,ro "$root"
        mount --bind "$volume" "$root/var/lib/rengo"
        mount -t tmpfs tmpfs "$root/tmp"
        mount -t proc proc "$root/proc"
        cd "$root/var/lib/rengo"
        exec chroot "$root" "$@"' \
        "$root" "$work/$volume" setpriv $rights env -i $variables "$@"
}
# the process of a service with whose end all its others end
first_of() { pgrep -P "$(cat "$work/run/$1.pid")" | head -1; }
# within SERVICE WORDS...: as `docker compose exec` does
within() {
    first=$(first_of "$1") && shift
    [ -n "$first" ] && nsenter -t "$first" --mount --pid --net --root setpriv $rights \
        env -i $variables "$@"
}
# keep SERVICE VOLUME WORDS...: started again a second after it ended
keep() {
    name=$1 && shift
    (
        ending=
        trap 'ending=1; kill "$(first_of "$name")" || true' TERM
        while [ -z "$ending" ]; do
            (contained "$@") >>"$work/run/$name.log" 2>&1 &
            echo $! >"$work/run/$name.pid"
            # the signal ends the first wait, the service the second
            wait $! || wait $! || true
            [ -n "$ending" ] || sleep 1
        done
    ) &
    echo $! >"$work/run/$name.loop"
}
await() {
    what=$1 tries=0 && shift
    until "$@" >"$work/run/said" 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 90 ] || { echo "$what: not within 90 s" >&2; cat "$work/run/said" >&2
            tail -n 5 "$work"/run/*.log >&2; exit 1; }
        sleep 1
    done
}
serve() {
    eval "set -- $1 $(words "$1" command)"
    service=$1 && shift
    keep "$service" site rengo "$@"
}
healthy() {
    eval "set -- $1 $(words "$1" healthcheck)"
    within "$@"
}
site_files() { (cd "$work/site" && find . -type f ! -name '*.lock' -exec sha256sum {} + | sort); }

eval "set -- $(words prepare command)"
(contained site rengo "$@")
site_files >"$work/run/first"
(contained site rengo "$@") >/dev/null
site_files | diff "$work/run/first" - || { echo "a second preparation changed the site" >&2; exit 1; }
open=$(find "$work/site" -type f -perm /077 ! -name '*.lock' ! -name '*.crt')
[ -z "$open" ] || { echo "open to others: $open" >&2; exit 1; }

serve broker
serve store
for service in broker store; do await "$service is healthy" healthy "$service"; done
serve server
await "server is healthy" healthy server
RENGO_TOKEN=$(within server rengo devices invite --json - | sed -n 's/.*"token": "\(.*\)",*/\1/p')
eval "set -- $(words device command)"
keep device device env RENGO_JOIN_TOKEN="$RENGO_TOKEN" rengo "$@"
ready() { within device rengo agent status | grep -q "ready, waiting"; }
train() {
    await "the device is ready" ready
    within server rengo run digits --rounds 1 --set cohort.size=1 --follow --output /tmp/out
}
train
for service in broker store server device; do
    echo "kill -9 of $service"
    kill -9 "$(first_of "$service")"
    [ "$service" = device ] || await "$service is healthy again" healthy "$service"
    await "server is healthy" healthy server
    train
done
name=$(within server rengo devices ls --json - | sed -n 's/.*"id": "\(.*\)",*/\1/p')
within server rengo devices revoke "$name"
gone() { within server rengo devices ls | grep -q revoked; }
await "the device is revoked" gone
echo "rehearsed"
