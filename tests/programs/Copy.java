import java.io.BufferedOutputStream;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/** Copy files|streams|channel|map|transfer SOURCE OUTPUT: the ways in which Java copies a file. */
class Copy {
    public static void main(String[] arguments) throws IOException {
        Path source = Path.of(arguments[1]);
        Path output = Path.of(arguments[2]);
        if (arguments[0].equals("files")) {
            Files.copy(source, output);
            return;
        }
        if (arguments[0].equals("streams")) {
            try (InputStream in = new FileInputStream(source.toFile());
                    OutputStream out = new BufferedOutputStream(new FileOutputStream(output.toFile()))) {
                in.transferTo(out);
            }
            return;
        }
        // a mapping can be written only where it can be read too
        try (FileChannel in = FileChannel.open(source);
                FileChannel out = FileChannel.open(
                        output, StandardOpenOption.CREATE_NEW, StandardOpenOption.READ, StandardOpenOption.WRITE)) {
            if (arguments[0].equals("map")) {
                out.map(FileChannel.MapMode.READ_WRITE, 0, in.size()).put(in.map(FileChannel.MapMode.READ_ONLY, 0, in.size()));
                return;
            }
            if (arguments[0].equals("transfer")) {
                if (in.transferTo(0, in.size(), out) != in.size()) {
                    throw new IOException("transferTo returned short");
                }
                return;
            }
            ByteBuffer buffer = ByteBuffer.allocateDirect(64 << 10);
            while (in.read(buffer) >= 0) {
                buffer.flip();
                while (buffer.hasRemaining()) {
                    out.write(buffer);
                }
                buffer.clear();
            }
        }
    }
}
