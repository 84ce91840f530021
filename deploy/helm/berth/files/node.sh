#!/bin/sh
# Brings one node into the state wished for: `present` or `absent`. Repeating it changes nothing.
#
# Runs in the chart's container: /host is the node's root, /files the chart's files. The unit is handled by the node's own
# systemctl. Every file is written aside and renamed into place, so a broken run leaves the old one whole.
set -eu

host=/host
on_node() { chroot "$host" "$@"; }

# put SOURCE TARGET MODE: the node's file becomes a copy; `changed` says whether it was not one before.
changed=no
put() {
    if cmp -s "$1" "$host$2"; then return 0; fi
    mkdir -p "$(dirname "$host$2")"
    cp "$1" "$host$2.new"
    chmod "$3" "$host$2.new"
    mv "$host$2.new" "$host$2"
    changed=yes
}

present() {
    put /bin/berth "$BERTH_BINARY" 0755
    put /files/berth.service "$BERTH_UNIT" 0644
    if [ -f /files/config.toml ]; then put /files/config.toml "$BERTH_CONFIG" 0600; fi
    on_node systemctl daemon-reload
    on_node systemctl enable berth.service
    # A restart leaves pods running: they belong to their supervisors, not to the daemon.
    if [ "$changed" = yes ]; then on_node systemctl restart berth.service; else on_node systemctl start berth.service; fi
    echo "berth is present: $(on_node "$BERTH_BINARY" --version)"
}

absent() {
    if [ -d "$host/run/berth/pods" ] && [ -n "$(ls -A "$host/run/berth/pods")" ]; then
        echo "refused: Berth still has pods on this node; move the kubelet back, then remove them (see the chart's notes)" >&2
        exit 1
    fi
    on_node systemctl disable --now berth.service 2>/dev/null || true
    rm -f "$host$BERTH_UNIT" "$host$BERTH_BINARY"
    on_node systemctl daemon-reload
    echo "berth is absent; images and records in $BERTH_ROOT, and $BERTH_CONFIG, stay until somebody removes them"
}

case "$1" in
present) present ;;
absent) absent ;;
*) echo "usage: node.sh present|absent" >&2; exit 2 ;;
esac
