# Stand-ins for the images of others, where no registry can be reached: servers of Debian 12 under the names, users, paths
# and variables of the official images. They show that compose.yaml and our images fit together, not that those images do.
# They share one layer, the folder with all servers that compose/verify/run makes.
FROM coro-standin/servers:bookworm AS postgres
COPY users/postgres /etc/passwd
COPY postgres-entrypoint.sh /usr/local/bin/docker-entrypoint.sh
ENV PGDATA=/var/lib/postgresql/18/docker
ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin
VOLUME /var/lib/postgresql
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]

FROM coro-standin/servers:bookworm AS kafka
COPY users/kafka /etc/passwd
COPY kafka-libs /opt/kafka/libs
COPY kafka-bin /opt/kafka/bin
VOLUME ["/etc/kafka/secrets", "/var/lib/kafka/data", "/mnt/shared/config"]
USER 1000

FROM coro-standin/servers:bookworm AS rabbitmq
COPY users/rabbitmq /etc/passwd
# Debian's belong to a user with another number.
RUN rm -rf /var/lib/rabbitmq/.erlang.cookie /var/lib/rabbitmq/mnesia && \
    chown 999:999 /var/log/rabbitmq && chmod 777 /var/log/rabbitmq
COPY rabbitmq-server /usr/local/bin/rabbitmq-server
COPY enabled_plugins /etc/rabbitmq/enabled_plugins
ENV HOME=/var/lib/rabbitmq
ENV RABBITMQ_DATA_DIR=/var/lib/rabbitmq
VOLUME /var/lib/rabbitmq
CMD ["rabbitmq-server"]

FROM coro-standin/servers:bookworm AS valkey
COPY users/valkey /etc/passwd
VOLUME /data
WORKDIR /data
CMD ["valkey-server"]

FROM coro-standin/servers:bookworm AS haproxy
USER 99
CMD ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]

FROM coro-standin/servers:bookworm AS prometheus
VOLUME /prometheus
USER 65534
ENTRYPOINT ["prometheus"]

FROM coro-standin/servers:bookworm AS node-exporter
USER 65534
ENTRYPOINT ["prometheus-node-exporter"]

FROM coro-standin/servers:bookworm AS postgres-exporter
COPY postgres-exporter.sh /usr/local/bin/postgres-exporter.sh
USER 65534
ENTRYPOINT ["postgres-exporter.sh"]

FROM coro-standin/servers:bookworm AS redis_exporter
USER 59000
ENTRYPOINT ["prometheus-redis-exporter"]

# Ours, which takes its jar from Maven Central: here it is the jar of the stacks.
FROM coro-standin/servers:bookworm AS kafka-agent
COPY kafka-agent /usr/local/share/kafka-agent
RUN install -d -o 65532 -g 65532 /var/lib/coro
USER 65532
CMD ["sh", "-c", "rm -f /var/lib/coro/*.jar && cp /usr/local/share/kafka-agent/*.jar /var/lib/coro/"]
