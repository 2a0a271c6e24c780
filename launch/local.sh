#!/usr/bin/env bash
# All parties on this machine.
#
#   local.sh demo [OPTIONS of splitsec demo]   trains, predicts encrypted and compares with the plain model
#   local.sh by-hand LAYOUT DIRECTORY          starts each party with its own command, as on machines of their own
#
# By hand, DIRECTORY afterwards has each party's home: keys, settings, log and what it trained (out/).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ "${1:-}" = demo ]; then
    exec splitsec demo "${@:2}"
elif [ "${1:-}" != by-hand ] || [ $# != 3 ]; then
    sed -n 's/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi

layout=$2 directory=$3
[ -d "$directory/server" ] || "$here/prepare.sh" "$layout" "$directory"

# Whatever happens, no party is left behind.
parties=()
trap 'kill "${parties[@]}" 2>/dev/null || true; wait' EXIT
trap 'exit 130' INT TERM

# They may be started in any order: each waits for those that it needs.
splitsec dealer --config "$directory/dealer/dealer.toml" 2>"$directory/dealer/log" &
parties+=($!)
splitsec server --config "$directory/server/server.toml" 2>"$directory/server/log" &
parties+=($!) server=$!
clients=()
for name in client-1 client-2; do
    splitsec client --config "$directory/$name/client.toml" 2>"$directory/$name/log" &
    parties+=($!) clients+=($!)
done

# A client ends when it has its predictions, the server when all clients have left; the dealer would go on serving.
for party in "${clients[@]}" "$server"; do
    wait "$party" || { code=$?; echo "local.sh: a party failed; see $directory/*/log" >&2; exit "$code"; }
done
