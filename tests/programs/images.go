// images DIR GO MIB_ANONYMOUS FILES PER_SECOND: a service that takes pictures in. Holds so much memory, waits until the
// file GO is there, and then for each picture writes the original (1 MiB), reads it twice, as for its header and its pixels,
// and writes a result of half its size. Prints how long the writes took, and what came from the disk. Compiled without cgo:
// a static program.
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const picture = 1 << 20

var took []time.Duration

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	must(err)
	return n
}

// write in pieces of 64 KiB.
func write(path string, content []byte) {
	file, err := os.Create(path)
	must(err)
	for at := 0; at < len(content); at += 64 << 10 {
		before := time.Now()
		_, err := file.Write(content[at : at+64<<10])
		took = append(took, time.Since(before))
		must(err)
	}
	must(file.Close())
}

func read(path string, into []byte) {
	file, err := os.Open(path)
	must(err)
	_, err = io.ReadFull(file, into)
	must(err)
	must(file.Close())
}

func main() {
	dir, files, perSecond := os.Args[1], number(os.Args[4]), number(os.Args[5])
	memory, err := syscall.Mmap(-1, 0, number(os.Args[3])<<20, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_ANON|syscall.MAP_PRIVATE)
	must(err)
	for at := 0; at < len(memory); at += 4096 {
		memory[at] = 1
	}
	must(os.WriteFile(filepath.Join(dir, "open"), []byte("x"), 0o644))
	open, err := os.Open(filepath.Join(dir, "open"))
	must(err)
	for {
		if _, err := os.Stat(os.Args[2]); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	original, again := make([]byte, picture), make([]byte, picture)
	sum := sha256.New()
	start := time.Now()
	for n := 0; n < files; n++ {
		random := uint32(n)*2654435761 + 1
		for at := 0; at < len(original); at += 64 {
			random = random*1664525 + 1013904223
			original[at] = byte(random >> 24)
			original[at+1] = byte(n)
		}
		path := filepath.Join(dir, fmt.Sprintf("%05d.original", n))
		write(path, original)
		read(path, again)
		read(path, again)
		if !bytes.Equal(original, again) {
			log.Fatalf("%s: it reads back otherwise", path)
		}
		result := again[:picture/2]
		write(filepath.Join(dir, fmt.Sprintf("%05d.result", n)), result)
		sum.Write(original)
		sum.Write(result)
		time.Sleep(time.Until(start.Add(time.Duration(n) * time.Second / time.Duration(perSecond))))
	}
	sort.Slice(took, func(a, b int) bool { return took[a] < took[b] })
	fmt.Printf("p50_us=%d\np999_us=%d\nmax_us=%d\n", took[len(took)/2].Microseconds(),
		took[len(took)*999/1000].Microseconds(), took[len(took)-1].Microseconds())
	text, err := os.ReadFile("/proc/self/io")
	must(err)
	for _, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(line, "read_bytes: ") {
			fmt.Printf("read_bytes=%s\n", strings.TrimPrefix(line, "read_bytes: "))
		}
	}
	fmt.Printf("sha256=%x\n", sum.Sum(nil))
	must(open.Close())
	memory[0] = 2
}
