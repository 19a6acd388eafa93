import java.io.BufferedWriter;
import java.io.File;
import java.lang.reflect.Field;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.ParameterizedType;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HexFormat;
import java.util.List;
import java.util.Locale;
import java.util.TreeMap;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.protocol.Message;
import org.apache.kafka.common.protocol.MessageUtil;
import org.apache.kafka.common.protocol.types.BoundField;
import org.apache.kafka.common.protocol.types.RawTaggedField;
import org.apache.kafka.common.protocol.types.Schema;
import org.apache.kafka.common.protocol.types.TaggedFields;
import org.apache.kafka.common.protocol.types.Type;
import org.apache.kafka.common.record.internal.MemoryRecords;

/**
 * Writes golden bytes: every message of the jars on the class path, in every version, as Kafka itself encodes it and as
 * Kafka's own converters show it.
 *
 * <p>A vector is one line: name, version, filling, number of fields that were set, bytes in hexadecimal, JSON; separated by
 * tabs. The fillings are {@code default}, {@code full} (every field differs from its default, every struct has an unknown
 * tagged field) and {@code null} (as full, but what may be null is). Values are counted up, so that a run is repeatable.
 */
public final class Golden {
    private static final int UNKNOWN_TAG = 10_001;

    private enum Filling { DEFAULT, FULL, NULL }

    private final Filling filling;
    private int counter;
    private int fieldsSet;

    private Golden(Filling filling) {
        this.filling = filling;
    }

    public static void main(String[] arguments) throws Exception {
        TreeMap<String, Class<?>> messages = new TreeMap<>();
        for (File jar : new File(arguments[0]).listFiles()) {
            if (jar.getName().matches("kafka-.*\\.jar")) {
                collect(jar, messages);
            }
        }
        try (BufferedWriter out = Files.newBufferedWriter(Path.of(arguments[1]), StandardCharsets.UTF_8)) {
            for (Class<?> type : messages.values()) {
                Message probe = (Message) type.getConstructor().newInstance();
                for (short version = probe.lowestSupportedVersion(); version <= probe.highestSupportedVersion(); version++) {
                    for (Filling filling : Filling.values()) {
                        out.write(vector(type, version, filling));
                        out.newLine();
                    }
                }
            }
        }
    }

    /** The generated classes are those that have a converter beside them. */
    private static void collect(File jar, TreeMap<String, Class<?>> messages) throws Exception {
        try (ZipFile zip = new ZipFile(jar)) {
            for (ZipEntry entry : (Iterable<ZipEntry>) zip.stream().map(e -> (ZipEntry) e)::iterator) {
                String name = entry.getName();
                if (name.endsWith("JsonConverter.class") && !name.contains("$")) {
                    Class<?> type = Class.forName(name.replace("JsonConverter.class", "").replace('/', '.'));
                    if (messages.put(type.getSimpleName(), type) != null) {
                        throw new IllegalStateException("two messages are named " + type.getSimpleName());
                    }
                }
            }
        }
    }

    private static String vector(Class<?> type, short version, Filling filling) throws Exception {
        Golden golden = new Golden(filling);
        Message message = (Message) type.getConstructor().newInstance();
        Schema schema = ((Schema[]) type.getField("SCHEMAS").get(null))[version];
        golden.fill(message, schema);
        ByteBuffer buffer = MessageUtil.toByteBufferAccessor(message, version).buffer();
        byte[] bytes = new byte[buffer.remaining()];
        buffer.get(bytes);
        Method write = Class.forName(type.getName() + "JsonConverter").getMethod("write", type, short.class, boolean.class);
        Object json = write.invoke(null, message, version, false);
        return String.join("\t", type.getSimpleName(), String.valueOf(version), filling.name().toLowerCase(Locale.ROOT),
            String.valueOf(golden.fieldsSet), HexFormat.of().formatHex(bytes), json.toString());
    }

    /** Sets the fields of a message or struct that the schema of a version names. */
    private void fill(Message object, Schema schema) throws Exception {
        for (BoundField bound : schema.fields()) {
            if (bound.def.type instanceof TaggedFields tagged) {
                for (org.apache.kafka.common.protocol.types.Field field : tagged.fields().values()) {
                    set(object, field.name, field.type);
                }
                if (filling != Filling.DEFAULT) {
                    object.unknownTaggedFields().add(new RawTaggedField(UNKNOWN_TAG, new byte[] {(byte) ++counter, 1}));
                }
            } else {
                set(object, bound.def.name, bound.def.type);
            }
        }
    }

    private void set(Message object, String name, Type type) throws Exception {
        Field field = find(object.getClass(), name);
        field.setAccessible(true);
        Object before = field.get(object);
        if (filling == Filling.DEFAULT) {
            // A record set's default is null even where null cannot be sent.
            if (before == null && !type.isNullable()) {
                field.set(object, MemoryRecords.EMPTY);
            }
            return;
        }
        fieldsSet++;
        if (filling == Filling.NULL && type.isNullable()) {
            field.set(object, null);
            return;
        }
        Object value = value(field, type, before);
        if (value.equals(before)) {
            value = value(field, type, before);
        }
        if (value.equals(before)) {
            throw new IllegalStateException(object.getClass() + "." + name + " keeps its default");
        }
        field.set(object, value);
    }

    private static Field find(Class<?> type, String name) {
        for (Field field : type.getDeclaredFields()) {
            if (!Modifier.isStatic(field.getModifiers()) && plain(field.getName()).equals(plain(name))) {
                return field;
            }
        }
        throw new IllegalStateException(type + " has no field " + name);
    }

    private static String plain(String name) {
        return name.replace("_", "").toLowerCase(Locale.ROOT);
    }

    private Object value(Field field, Type type, Object before) throws Exception {
        Class<?> java = field.getType();
        if (type.arrayElementType().isPresent()) {
            return collection(field, type.arrayElementType().get());
        }
        if (Message.class.isAssignableFrom(java)) {
            Message struct = (Message) java.getConstructor().newInstance();
            fill(struct, (Schema) type);
            return struct;
        }
        return primitive(java, type, before);
    }

    @SuppressWarnings("unchecked")
    private Object collection(Field field, Type element) throws Exception {
        Class<?> java = field.getType();
        boolean list = java == List.class;
        ParameterizedType generic = (ParameterizedType) (list ? field.getGenericType() : java.getGenericSuperclass());
        Class<?> of = (Class<?>) generic.getActualTypeArguments()[0];
        Collection<Object> collection = list ? new ArrayList<>() : (Collection<Object>) java.getConstructor().newInstance();
        for (int i = 0; i < 2; i++) {
            if (Message.class.isAssignableFrom(of)) {
                Message struct = (Message) of.getConstructor().newInstance();
                fill(struct, (Schema) element);
                collection.add(struct);
            } else {
                collection.add(primitive(of, element, null));
            }
        }
        return collection;
    }

    private Object primitive(Class<?> java, Type type, Object before) {
        int n = ++counter % 100 + 3;
        boolean negative = counter % 3 == 0;
        if (java == boolean.class) {
            return !((Boolean) before);
        } else if (java == byte.class || java == Byte.class) {
            return (byte) (negative ? -n : n);
        } else if (java == short.class || java == Short.class) {
            return (short) ((negative ? -257 : 257) * n);
        } else if (type == Type.UINT16) {
            return 600 * n;
        } else if (java == int.class || java == Integer.class) {
            return (negative ? -0x01020304 : 0x01020304) * n;
        } else if (type == Type.UNSIGNED_INT32) {
            return 40_000_000L * n;
        } else if (java == long.class || java == Long.class) {
            return (negative ? -0x0102030405060708L : 0x0102030405060708L) * n;
        } else if (java == double.class) {
            return n + 0.25;
        } else if (java == String.class) {
            return "text-é-" + n;
        } else if (java == Uuid.class) {
            return new Uuid(0x0102030405060708L * n, -n);
        } else if (java == byte[].class) {
            return new byte[] {(byte) n, 0, -1};
        } else if (java == ByteBuffer.class) {
            return ByteBuffer.wrap(new byte[] {(byte) n, -2});
        } else if (java.getSimpleName().equals("BaseRecords")) {
            return MemoryRecords.readableRecords(ByteBuffer.wrap(new byte[] {(byte) n, 5, 6, 7}));
        }
        throw new IllegalStateException("no value for " + java);
    }
}
