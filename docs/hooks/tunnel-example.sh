#!/bin/sh
# An example of a hook: announces each published port of a sandbox under a name of its own, and takes
# the name away with the network. Put it, executable, into the hooks directory, and replace `announce`
# and `withdraw` by what your tunnel needs.
set -eu

call=$(cat)
id=$KILN_SANDBOX

announce() { logger -t kiln-tunnel "announce $id: $1"; }
withdraw() { logger -t kiln-tunnel "withdraw $id"; }

case $1 in
    network_up | policy_changed)
        # `publish` is a list of HOST:GUEST[/PROTOCOL]; jq is not needed for that much.
        ports=$(printf %s "$call" | sed -n 's/.*"publish":\[\([^]]*\)\].*/\1/p' | tr -d '"')
        withdraw
        for port in $(printf %s "$ports" | tr ',' ' '); do announce "$port"; done
        ;;
    network_down) withdraw ;;
esac
