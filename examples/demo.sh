#!/bin/sh
# The main job on real input, in a folder of its own: nothing else on this machine is touched.
set -eu
cd "$(dirname "$0")/.."
demo=$(mktemp -d)
trap 'rm -rf "$demo"' EXIT
mkdir "$demo/desk"
ANNORIS_DATA_DIR="$demo/data" ANNORIS_CONFIG="" XDG_CONFIG_HOME="$demo/config"
export ANNORIS_DATA_DIR ANNORIS_CONFIG XDG_CONFIG_HOME
input="$PWD/examples/sessions"
cd "$demo/desk"

say() { printf '\n$ %s\n' "$*"; }

ANNORIS_PROJECT=shop
export ANNORIS_PROJECT

say "annoris save webhook-retries.md"
annoris save "$input/webhook-retries.md"

say "annoris save *.md        # one push for all; the first one is there already"
annoris save "$input"/*.md

say "annoris list --all"
annoris list --all

say "annoris search подписк"
annoris search подписк

say "annoris load --project library        # the newest of a project"
annoris load --project library

for file in "$input"/webhook-retries.md "$input"/oplata-po-podpiske.md; do
    id=$(annoris save --json "$file" |
        sed 's/.*"id": "\([^"]*\)".*/\1/')
    annoris load "$id" --body --quiet | cmp - "$file"
done
say "annoris load ID --body | cmp - FILE"
echo "byte for byte the same"
