import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.util.logging.Handler;
import java.util.logging.LogRecord;
import java.util.logging.Logger;

import elki.clustering.kmeans.AbstractKMeans;
import elki.clustering.kmeans.ExponionKMeans;
import elki.clustering.kmeans.ShallotKMeans;
import elki.clustering.kmeans.initialization.Predefined;
import elki.data.Cluster;
import elki.data.Clustering;
import elki.data.NumberVector;
import elki.data.model.KMeansModel;
import elki.data.type.TypeUtil;
import elki.database.Database;
import elki.database.StaticArrayDatabase;
import elki.database.ids.DBIDIter;
import elki.database.ids.DBIDRange;
import elki.database.relation.Relation;
import elki.datasource.ArrayAdapterDatabaseConnection;
import elki.distance.minkowski.SquaredEuclideanDistance;
import elki.logging.Logging;

/**
 * ELKI's exact K-Means for benchmarks/exact_elki.py, which starts it and talks to it by pipes, all in big-endian.
 *
 * Arguments: exponion or shallot, the most iterations, and for how many seconds to fit before the first fit that
 * counts. Reads n, d, k (int), n x d points and k x d centroids to start from (double); fits until warm; writes the
 * iterations (int). Then, for each byte that it reads, fits once and writes the seconds (double), the number of
 * clusters (int), their centroids (double) and n labels (int).
 */
public class KMeansBench {
  public static void main(String[] args) throws IOException {
    var in = new DataInputStream(new BufferedInputStream(System.in, 1 << 16));
    var out = new DataOutputStream(new BufferedOutputStream(System.out, 1 << 16));
    System.setOut(System.err); // whatever ELKI prints must not get among the answers
    int n = in.readInt(), d = in.readInt(), k = in.readInt();
    Database database = new StaticArrayDatabase(new ArrayAdapterDatabaseConnection(read(in, n, d)));
    database.initialize(); // adds no index
    Relation<NumberVector> points = database.getRelation(TypeUtil.NUMBER_VECTOR_FIELD);
    double[][] start = read(in, k, d);
    var distance = SquaredEuclideanDistance.STATIC;
    int most = Integer.parseInt(args[1]);
    AbstractKMeans<NumberVector, KMeansModel> algorithm = switch(args[0]) {
      case "exponion" -> new ExponionKMeans<>(distance, k, most, null, false);
      case "shallot" -> new ShallotKMeans<>(distance, k, most, null, false);
      default -> throw new IllegalArgumentException(args[0]);
    };
    long end = System.nanoTime() + (long) (1e9 * Double.parseDouble(args[2]));
    do {
      restart(algorithm, start);
      algorithm.run(points);
    } while(System.nanoTime() < end);
    restart(algorithm, start);
    out.writeInt(iterations(algorithm, points)); // not of the first fit: a start that is spoilt by a fit would show
    out.flush();
    while(in.read() >= 0) {
      restart(algorithm, start);
      System.gc(); // the garbage of earlier fits is not this one's
      long begin = System.nanoTime();
      Clustering<KMeansModel> result = algorithm.run(points);
      out.writeDouble((System.nanoTime() - begin) * 1e-9);
      write(out, result, (DBIDRange) points.getDBIDs());
      out.flush();
    }
  }

  /** Give the next fit a copy of the start: ELKI moves the very arrays that it is given. */
  private static void restart(AbstractKMeans<NumberVector, KMeansModel> algorithm, double[][] start) {
    var copy = new double[start.length][];
    for(int i = 0; i < start.length; i++) {
      copy[i] = start[i].clone();
    }
    algorithm.setInitializer(new Predefined(copy));
  }

  private static double[][] read(DataInputStream in, int rows, int columns) throws IOException {
    var values = new double[rows][columns];
    for(double[] row : values) {
      for(int j = 0; j < columns; j++) {
        row[j] = in.readDouble();
      }
    }
    return values;
  }

  private static void write(DataOutputStream out, Clustering<KMeansModel> result, DBIDRange ids) throws IOException {
    var clusters = result.getAllClusters();
    var labels = new int[ids.size()];
    out.writeInt(clusters.size());
    for(int c = 0; c < clusters.size(); c++) {
      Cluster<KMeansModel> cluster = clusters.get(c);
      for(double value : cluster.getModel().getMean()) {
        out.writeDouble(value);
      }
      for(DBIDIter it = cluster.getIDs().iter(); it.valid(); it.advance()) {
        labels[ids.getOffset(it)] = c;
      }
    }
    for(int label : labels) {
      out.writeInt(label);
    }
  }

  /** Fit once and count: ELKI tells the number of iterations to its log only, which stays off in fits that count. */
  private static int iterations(AbstractKMeans<NumberVector, KMeansModel> algorithm, Relation<NumberVector> points) {
    var count = new int[1];
    var handler = new Handler() {
      @Override
      public void publish(LogRecord entry) {
        String message = entry.getMessage();
        int at = message == null ? -1 : message.indexOf(".iterations: ");
        if(at >= 0) {
          count[0] = Integer.parseInt(message.substring(at + ".iterations: ".length()).trim());
        }
      }

      @Override
      public void flush() {}

      @Override
      public void close() {}
    };
    var log = Logger.getLogger(algorithm.getClass().getName());
    log.setUseParentHandlers(false);
    log.addHandler(handler);
    log.setLevel(Logging.Level.STATISTICS);
    algorithm.run(points);
    log.setLevel(java.util.logging.Level.WARNING);
    log.removeHandler(handler);
    log.setUseParentHandlers(true);
    return count[0];
  }
}
