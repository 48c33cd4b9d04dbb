import java.io.FileOutputStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;

/**
 * Log LOG GO MIB MIB_PER_SECOND: opens a log, waits until the file GO is there, and appends so much in records of 2 KiB, each
 * by one write, as a logger that flushes does. Prints how long the writes took.
 */
class Log {
    static final int RECORD = 2048;

    public static void main(String[] arguments) throws Exception {
        long records = Long.parseLong(arguments[2]) * 512;
        double perSecond = Double.parseDouble(arguments[3]) * 512;
        long[] took = new long[(int) records];
        try (FileOutputStream log = new FileOutputStream(arguments[0], true)) {
            while (!Files.exists(Path.of(arguments[1]))) {
                Thread.sleep(20);
            }
            long start = System.nanoTime();
            for (int n = 0; n < records; n++) {
                byte[] record = record(n);
                long before = System.nanoTime();
                log.write(record);
                long after = System.nanoTime();
                took[n] = after - before;
                long ahead = (long) (n / perSecond * 1e9) - (after - start);
                if (ahead > 5_000_000) {
                    Thread.sleep(ahead / 1_000_000);
                }
            }
            log.write("END\n".getBytes(StandardCharsets.US_ASCII));
        }
        Arrays.sort(took);
        System.out.printf("p50_us=%d%np999_us=%d%nmax_us=%d%n", took[took.length / 2] / 1000,
            took[(int) (took.length * 0.999)] / 1000, took[took.length - 1] / 1000);
    }

    static byte[] record(int n) {
        byte[] record = new byte[RECORD];
        byte[] head = ("2024-05-01T12:00:00.000Z ERROR [worker-" + n % 16 + "] request " + n + " failed\n\tat ")
            .getBytes(StandardCharsets.US_ASCII);
        System.arraycopy(head, 0, record, 0, head.length);
        int random = n * 0x9E3779B9;
        for (int at = head.length; at < RECORD - 1; at++) {
            random = random * 1664525 + 1013904223;
            record[at] = (byte) ('a' + (random >>> 28));
        }
        record[RECORD - 1] = '\n';
        return record;
    }
}
