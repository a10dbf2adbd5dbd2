#!/bin/sh
# An example of a hook: gives each published port of a sandbox a public name of its own at a tunnel,
# and takes the names away with the network. Put it, executable, into the hooks directory, and what
# your tunnel needs into `tunnel.conf` beside it (not executable): the domain and the two functions.
set -eu

call=$(cat)
id=$KILN_SANDBOX

domain=tunnel.example
# A public name, and the port that it leads to: [ADDRESS:]HOST:GUEST[/PROTOCOL].
announce() { logger -t kiln-tunnel "announce $1 for $2"; }
# All names of a sandbox.
withdraw() { logger -t kiln-tunnel "withdraw $1"; }

conf=$(dirname "$0")/tunnel.conf
[ ! -f "$conf" ] || . "$conf"

case $1 in
    network_up | policy_changed)
        # `publish` is a list of [ADDRESS:]HOST:GUEST[/PROTOCOL]; jq is not needed for that much.
        ports=$(printf %s "$call" | sed -n 's/.*"publish":\[\([^]]*\)\].*/\1/p' | tr -d '"')
        withdraw "$id"
        for port in $(printf %s "$ports" | tr ',' ' '); do
            guest=${port%/*}
            announce "${guest##*:}-$id.$domain" "$port"
        done
        ;;
    network_down) withdraw "$id" ;;
esac
