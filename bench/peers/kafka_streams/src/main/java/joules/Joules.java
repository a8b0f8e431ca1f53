package joules;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.file.Files;
import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.Properties;
import java.util.TreeMap;
import java.util.concurrent.atomic.AtomicLong;
import org.apache.arrow.compression.CommonsCompressionFactory;
import org.apache.arrow.memory.BufferAllocator;
import org.apache.arrow.memory.RootAllocator;
import org.apache.arrow.vector.BigIntVector;
import org.apache.arrow.vector.IntVector;
import org.apache.arrow.vector.LargeVarCharVector;
import org.apache.arrow.vector.ipc.ArrowStreamReader;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.EmitStrategy;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

/** Joules per GPU and 10 s window with Kafka Streams, from one row per message or from the collectors' messages. */
public final class Joules {
  private static final long WINDOW_MS = 10_000;
  private static final long GRACE_MS = 15_000;
  private static final ObjectReader JSON = new ObjectMapper().readerFor(Map.class);
  private static final AtomicLong SEEN = new AtomicLong();
  private static long total;

  public static void main(String[] args) throws IOException {
    String mode = args[1], topic = args[2], output = args[3];
    total = Long.parseLong(args[4]);
    Properties config = new Properties();
    config.put(StreamsConfig.APPLICATION_ID_CONFIG, output);
    config.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
    config.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    config.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1000);
    config.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 1);
    config.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 200L << 20);
    config.put(StreamsConfig.STATE_DIR_CONFIG, Files.createTempDirectory("streams").toString());
    config.put("consumer.auto.offset.reset", "earliest");
    config.put("max.poll.records", 5000);
    config.put("producer.linger.ms", 50);
    StreamsBuilder builder = new StreamsBuilder();
    if (mode.equals("rows")) {
      rows(builder, topic, output);
    } else {
      messages(builder, topic, output);
    }
    KafkaStreams streams = new KafkaStreams(builder.build(), config);
    Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(2))));
    streams.start();
  }

  private static void rows(StreamsBuilder builder, String topic, String output) {
    builder.addStateStore(
        Stores.keyValueStoreBuilder(Stores.inMemoryKeyValueStore("last"), Serdes.String(), Serdes.Long()));
    builder.stream(topic, Consumed.with(Serdes.String(), Serdes.ByteArray()))
        .processValues(Increment::new, "last")
        .groupByKey(Grouped.with(Serdes.String(), Serdes.Long()))
        .windowedBy(TimeWindows.ofSizeAndGrace(Duration.ofMillis(WINDOW_MS), Duration.ofMillis(GRACE_MS)))
        .emitStrategy(EmitStrategy.onWindowClose())
        .reduce(
            Long::sum,
            Materialized.<String, Long>as(
                    Stores.inMemoryWindowStore(
                        "windows", Duration.ofMillis(4 * WINDOW_MS), Duration.ofMillis(WINDOW_MS), false))
                .withKeySerde(Serdes.String())
                .withValueSerde(Serdes.Long()))
        .toStream((window, sum) -> window.key() + "/" + window.window().start())
        .map((key, sum) -> {
          int slash = key.indexOf('/');
          String gpu = key.substring(0, slash);
          return org.apache.kafka.streams.KeyValue.pair(gpu, result(gpu, key.substring(slash + 1), sum));
        })
        .to(output, Produced.with(Serdes.String(), Serdes.String()));
  }

  private static void messages(StreamsBuilder builder, String topic, String output) {
    builder.addStateStore(
        Stores.keyValueStoreBuilder(Stores.inMemoryKeyValueStore("last"), Serdes.String(), Serdes.Long()));
    builder.addStateStore(
        Stores.keyValueStoreBuilder(Stores.inMemoryKeyValueStore("windows"), Serdes.String(), Serdes.Long()));
    builder.stream(topic, Consumed.with(Serdes.String(), Serdes.ByteArray()))
        .process(Batches::new, "last", "windows")
        .to(output, Produced.with(Serdes.String(), Serdes.String()));
  }

  private static String result(String gpu, String start, long energyMj) {
    return "{\"gpu\":\"" + gpu + "\",\"start_ms\":" + start + ",\"energy_mj\":" + energyMj + "}";
  }

  private static void seen(long rows) {
    long now = SEEN.addAndGet(rows), before = now - rows;
    if (before < total / 3 && now >= total / 3) {
      System.out.println("warm " + now);
    }
    if (before < total && now >= total) {
      System.out.println("done " + now);
    }
  }

  /** Cumulative energy to its increment. */
  private static final class Increment extends ContextualFixedKeyProcessor<String, byte[], Long> {
    private KeyValueStore<String, Long> last;

    @Override
    public void init(FixedKeyProcessorContext<String, Long> context) {
      super.init(context);
      last = context.getStateStore("last");
    }

    @Override
    public void process(FixedKeyRecord<String, byte[]> record) {
      seen(1);
      try {
        long energyMj = ((Number) ((Map<?, ?>) JSON.readValue(record.value())).get("energy_mj")).longValue();
        Long before = last.get(record.key());
        last.put(record.key(), energyMj);
        context().forward(record.withValue(before == null ? 0L : energyMj - before));
      } catch (IOException error) {
        throw new UncheckedIOException(error);
      }
    }
  }

  /** The collectors' Arrow messages to closed windows; state is by GPU, and a GPU stays in its partition. */
  private static final class Batches extends ContextualProcessor<String, byte[], String, String> {
    private final BufferAllocator allocator = new RootAllocator();
    private KeyValueStore<String, Long> last;
    private KeyValueStore<String, Long> windows;
    // window start -> GPUs with something in it; kept beside the store to close windows without a scan
    private final TreeMap<Long, Map<String, Long>> open = new TreeMap<>();
    private long newest;

    @Override
    public void init(ProcessorContext<String, String> context) {
      super.init(context);
      last = context.getStateStore("last");
      windows = context.getStateStore("windows");
      try (var stored = windows.all()) {
        stored.forEachRemaining(entry -> {
          int slash = entry.key.indexOf('/');
          open.computeIfAbsent(Long.parseLong(entry.key.substring(slash + 1)), start -> new HashMap<>())
              .put(entry.key.substring(0, slash), entry.value);
        });
      }
    }

    @Override
    public void process(Record<String, byte[]> record) {
      try (var reader =
          new ArrowStreamReader(
              new ByteArrayInputStream(record.value()), allocator, CommonsCompressionFactory.INSTANCE)) {
        while (reader.loadNextBatch()) {
          var root = reader.getVectorSchemaRoot();
          var ts = (BigIntVector) root.getVector("ts_ms");
          var gpus = (IntVector) root.getVector("gpu_uuid");
          long names = gpus.getField().getDictionary().getId();
          var uuids = (LargeVarCharVector) reader.getDictionaryVectors().get(names).getVector();
          var uuid = new String[uuids.getValueCount()];
          for (int i = 0; i < uuid.length; i++) {
            uuid[i] = new String(uuids.get(i));
          }
          var energy = (BigIntVector) root.getVector("energy_mj");
          for (int i = 0; i < root.getRowCount(); i++) {
            String gpu = uuid[gpus.get(i)];
            long energyMj = energy.get(i), start = ts.get(i) / WINDOW_MS * WINDOW_MS;
            newest = Math.max(newest, ts.get(i));
            Long before = last.get(gpu);
            last.put(gpu, energyMj);
            long sum =
                open.computeIfAbsent(start, any -> new HashMap<>())
                    .merge(gpu, before == null ? 0L : energyMj - before, Long::sum);
            windows.put(gpu + "/" + start, sum);
          }
          seen(root.getRowCount());
        }
      } catch (IOException error) {
        throw new UncheckedIOException(error);
      }
      while (!open.isEmpty() && open.firstKey() + WINDOW_MS + GRACE_MS <= newest) {
        var closed = open.pollFirstEntry();
        String start = closed.getKey().toString();
        closed.getValue().forEach((gpu, sum) -> {
          windows.delete(gpu + "/" + start);
          context().forward(new Record<>(gpu, result(gpu, start, sum), closed.getKey()));
        });
      }
    }

    @Override
    public void close() {
      allocator.close();
    }
  }
}
