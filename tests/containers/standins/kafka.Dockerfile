# Stands in for apache/kafka where it cannot be pulled: the same Kafka, its settings taken from the environment alike.
ARG BASE
FROM ${BASE}
COPY jre /opt/java
COPY jars /opt/kafka/libs
COPY run /etc/kafka/docker/run
COPY log4j2.properties /etc/kafka/log4j2.properties
RUN useradd --uid 1000 appuser && mkdir -p /var/lib/kafka/data && chown appuser /var/lib/kafka/data
USER appuser
EXPOSE 9092
CMD ["/etc/kafka/docker/run"]
