#!/bin/bash
# As the image apache/kafka does: KAFKA_NODE_ID=1 becomes node.id=1, the folder is formatted once, then Kafka runs.
set -euo pipefail
file=/tmp/server.properties
while IFS='=' read -r -d '' name value; do
    case $name in
    KAFKA_HEAP_OPTS) ;;
    KAFKA_*) name=${name#KAFKA_} name=${name//_/.} && echo "${name,,}=$value" ;;
    esac
done < <(env -0) >"$file"
java=(/opt/java/bin/java ${KAFKA_HEAP_OPTS:--Xmx512m} -XX:+UseSerialGC -XX:+ExitOnOutOfMemoryError
    --sun-misc-unsafe-memory-access=allow --enable-native-access=ALL-UNNAMED
    -Dlog4j2.configurationFile=/etc/kafka/log4j2.properties -cp '/opt/kafka/libs/*')
"${java[@]}" kafka.tools.StorageTool format --ignore-formatted --cluster-id 5L6g3nShT-eMCtK--X86sw --config "$file"
exec "${java[@]}" kafka.Kafka "$file"
