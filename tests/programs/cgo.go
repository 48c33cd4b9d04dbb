// cgo HOW FROM TO: copies a file, by Go's writes of 64 KiB, by io.Copy (which has the kernel copy), or by libc's write.
// Linked with libc, which Go's own system calls pass by.
package main

// #include <fcntl.h>
// #include <stdlib.h>
// #include <unistd.h>
import "C"

import (
	"io"
	"log"
	"os"
	"unsafe"
)

// onlyWrites hides what io.Copy would rather use.
type onlyWrites struct{ io.Writer }

// libc writes by libc.
type libc C.int

func (fd libc) Write(bytes []byte) (int, error) {
	wrote, err := C.write(C.int(fd), unsafe.Pointer(&bytes[0]), C.size_t(len(bytes)))
	if wrote < 0 {
		return 0, err
	}
	return int(wrote), nil
}

func main() {
	from, err := os.Open(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	to, err := os.Create(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	switch buffer := make([]byte, 64<<10); os.Args[1] {
	case "kernel":
		_, err = io.Copy(to, from)
	case "writes":
		_, err = io.CopyBuffer(onlyWrites{to}, onlyReads{from}, buffer)
	case "libc":
		_, err = io.CopyBuffer(libc(to.Fd()), onlyReads{from}, buffer)
	default:
		log.Fatal("unknown way: ", os.Args[1])
	}
	if err != nil {
		log.Fatal(err)
	}
	if err := to.Close(); err != nil {
		log.Fatal(err)
	}
}

// onlyReads hides the same on the other side.
type onlyReads struct{ io.Reader }
