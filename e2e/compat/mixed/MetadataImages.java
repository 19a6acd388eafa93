import java.io.File;
import java.nio.file.Path;
import java.util.ArrayList;

import org.apache.kafka.common.protocol.ByteBufferAccessor;
import org.apache.kafka.common.record.internal.FileRecords;
import org.apache.kafka.image.*;
import org.apache.kafka.metadata.MetadataRecordSerde;

/**
 * Loads snapshots of the metadata log into Apache's own image, each given as a file, and ends with code 1 unless all images are
 * equal by Apache's own measure. All snapshots are to be of the same offset.
 */
public class MetadataImages {
    public static void main(String[] files) throws Exception {
        var images = new ArrayList<MetadataImage>();
        for (var file : files) images.add(load(file));
        var first = images.get(0);
        boolean same = true;
        for (int i = 1; i < files.length; i++) {
            if (images.get(i).equals(first)) continue;
            same = false;
            System.out.println(files[i] + " is another image than " + files[0]);
            differ("features", first.features(), images.get(i).features());
            differ("cluster", first.cluster(), images.get(i).cluster());
            differ("topics", first.topics(), images.get(i).topics());
            differ("configurations", first.configs(), images.get(i).configs());
            differ("quotas", first.clientQuotas(), images.get(i).clientQuotas());
            differ("producer ids", first.producerIds(), images.get(i).producerIds());
            differ("ACLs", first.acls(), images.get(i).acls());
            differ("SCRAM", first.scram(), images.get(i).scram());
            differ("tokens", first.delegationTokens(), images.get(i).delegationTokens());
        }
        System.out.println(files.length + " images with " + first.topics().topicsById().size() + " topics and " + first.cluster().brokers().size() + " brokers");
        System.exit(same ? 0 : 1);
    }

    static void differ(String what, Object expected, Object is) {
        if (!expected.equals(is)) System.out.println(what + ":\n  " + expected + "\n  " + is);
    }

    /** The offset that a snapshot is of stands in its name; its batches count from 0. */
    static MetadataImage load(String file) throws Exception {
        var delta = new MetadataDelta.Builder().setImage(MetadataImage.EMPTY).build();
        try (var records = FileRecords.open(new File(file), false)) {
            for (var batch : records.batches()) {
                // Those say where the snapshot begins and ends, and who votes.
                if (batch.isControlBatch()) continue;
                for (var record : batch) {
                    var value = new ByteBufferAccessor(record.value());
                    delta.replay(MetadataRecordSerde.INSTANCE.read(value, record.valueSize()).message());
                }
            }
        }
        delta.finishSnapshot();
        var words = Path.of(file).getFileName().toString().split("[-.]");
        return delta.apply(new MetadataProvenance(Long.parseLong(words[0]) - 1, Integer.parseInt(words[1]), 0, true));
    }
}
