// copy HOW FROM TO: copies a file by io.Copy (which has the kernel copy), or by writes of 64 KiB. Compiled without cgo:
// a static program whose system calls are Go's own.
package main

import (
	"io"
	"log"
	"os"
)

// onlyWrites hides what io.Copy would rather use.
type onlyWrites struct{ io.Writer }

func main() {
	how := os.Args[1]
	from, err := os.Open(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	to, err := os.Create(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	var bytes int64
	switch how {
	case "kernel":
		bytes, err = io.Copy(to, from)
	case "writes":
		bytes, err = io.CopyBuffer(onlyWrites{to}, from, make([]byte, 64<<10))
	default:
		log.Fatal("unknown way: ", how)
	}
	if err != nil {
		log.Fatal(err)
	}
	if info, err := from.Stat(); err != nil || info.Size() != bytes {
		log.Fatalf("copied %d bytes of %d (%v)", bytes, info.Size(), err)
	}
	if err := to.Close(); err != nil {
		log.Fatal(err)
	}
}
