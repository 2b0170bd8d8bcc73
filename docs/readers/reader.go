// The smallest complete reader for the dot head: scores of some items for a user (go-redis v9; docs/redis.md).
//
//	go run reader.go redis://localhost:6379 headwater USER ITEM ITEM …
package main

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math"
	"os"

	"github.com/redis/go-redis/v9"
)

type pointer struct {
	Version     int64  `json:"version"`
	Buckets     uint32 `json:"buckets"`
	Head        string `json:"head"`
	DefaultUser string `json:"default_user"`
}

func floats(raw string) []float32 {
	v := make([]float32, len(raw)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32([]byte(raw[4*i : 4*i+4])))
	}
	return v
}

// scores returns the known items' scores; all numbers are of one version.
func scores(ctx context.Context, r redis.UniversalClient, ns, user string, items []string) (map[string]float32, error) {
	var p pointer
	var u string
	found := map[string]string{}
	for try := 0; try < 2; try++ { // a miss may mean that this version has just gone: read the pointer again, once
		raw, err := r.Get(ctx, ns+":current").Bytes()
		if err != nil {
			return nil, err
		}
		p = pointer{}
		if err := json.Unmarshal(raw, &p); err != nil {
			return nil, err
		}
		key := func(kind, id string) string {
			return fmt.Sprintf("%s:%s:{b%d}:v%d", ns, kind, crc32.ChecksumIEEE([]byte(id))%p.Buckets, p.Version)
		}
		u, err = r.HGet(ctx, key("users", user), user).Result()
		if err != nil && err != redis.Nil {
			return nil, err
		}
		clear(found)
		for _, id := range items {
			v, err := r.HGet(ctx, key("items", id), id).Result()
			if err == nil {
				found[id] = v
			} else if err != redis.Nil {
				return nil, err
			}
		}
		if u != "" && len(found) == len(items) {
			break
		}
	}
	if p.Head != "dot" {
		return nil, fmt.Errorf("head %q: see mlp in reader.py", p.Head)
	}
	if u == "" {
		raw, err := base64.StdEncoding.DecodeString(p.DefaultUser)
		if err != nil {
			return nil, err
		}
		u = string(raw)
	}
	out, uv := map[string]float32{}, floats(u)
	for id, raw := range found {
		for i, x := range floats(raw) {
			out[id] += x * uv[i]
		}
	}
	return out, nil
}

func main() {
	options, err := redis.ParseURL(os.Args[1])
	if err == nil {
		var s map[string]float32
		if s, err = scores(context.Background(), redis.NewClient(options), os.Args[2], os.Args[3], os.Args[4:]); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(s)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
