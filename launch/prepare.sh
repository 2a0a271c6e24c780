#!/usr/bin/env bash
# Make the home of every party of a demonstration run below one directory:
#
#   prepare.sh LAYOUT DIRECTORY [SERVER_HOST [DEALER_HOST]]
#
# DIRECTORY/server, /dealer, /client-1 and /client-2 each get their settings (from configs/), their own secret key, the
# public keys of the others and, a client, its data. In a real run each party makes its own pair on its own machine with
# `splitsec keys`, and only the .key files travel.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
layout=${1:?"a layout: one of $(cd "$here/configs" && echo */)"}
directory=${2:?"a directory for the parties' homes"}
server_host=${3:-127.0.0.1}
dealer_host=${4:-$server_host}
clients=(client-1 client-2)

for party in dealer server "${clients[@]}"; do
    mkdir -p "$directory/$party"
    splitsec keys --out "$directory/$party/keys" "$party" >/dev/null
done
for party in dealer server "${clients[@]}"; do
    for home in "$directory"/*/; do
        [ "$home" = "$directory/$party/" ] || cp "$directory/$party/keys/$party.key" "$home/keys/"
    done
done

hosts="s/server\.example/$server_host/; s/dealer\.example/$dealer_host/"
cp "$here/configs/dealer.toml" "$directory/dealer/"
sed "$hosts" "$here/configs/$layout/server.toml" >"$directory/server/server.toml"
for client in "${clients[@]}"; do
    sed "$hosts; s/^name = .*/name = \"$client\"/" "$here/configs/$layout/client.toml" >"$directory/$client/client.toml"
done
"${PYTHON:-python3}" "$here/demo_data.py" "$layout" "$directory"
