#!/bin/sh
# One item's vector by redis-cli alone: which version is served, which bucket the id is in, the raw numbers (docs/redis.md).
#   sh docs/readers/reader.sh redis://localhost:6379 headwater items ITEM
set -eu
url=$1 ns=$2 kind=$3 id=$4
pointer=$(redis-cli -u "$url" GET "$ns:current")
field() { printf '%s' "$pointer" | sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p"; }
# gzip keeps the same CRC-32, in the four little-endian bytes that start eight before its end.
crc=$(printf '%s' "$id" | gzip -c | tail -c 8 | head -c 4 | od -An -v -t u4 --endian=little | tr -d ' ')
key="$ns:$kind:{b$((crc % $(field buckets)))}:v$(field version)"
[ "$(redis-cli -u "$url" HEXISTS "$key" "$id")" = 1 ] || { echo "$id is unknown" >&2; exit 1; }
redis-cli -u "$url" HGET "$key" "$id" | head -c $((4 * $(field dim))) | od -An -v -w4 -t f4 --endian=little
