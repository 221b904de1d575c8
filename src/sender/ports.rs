//! Ports on which no receiver listens. Whoever registers a URL chooses what Herald talks to. A request is text, and some
//! servers of other protocols obey the lines in it that they understand.

/// The Fetch standard's bad ports (https://fetch.spec.whatwg.org/#bad-port).
const BAD: &[u16] = &[
    1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110,
    111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532,
    540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061,
    6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
];

/// Data stores, brokers and the machinery behind them, by their registered or usual ports.
const STORES: &[(u16, &str)] = &[
    (445, "a file server"),
    (873, "rsync"),
    (1433, "SQL Server"),
    (1521, "Oracle"),
    (1883, "an MQTT broker"),
    (2181, "ZooKeeper"),
    (2375, "Docker"),
    (2376, "Docker"),
    (2379, "etcd"),
    (2380, "etcd"),
    (3306, "MySQL"),
    (3389, "a remote desktop"),
    (4222, "NATS"),
    (4369, "Erlang's port mapper"),
    (5432, "PostgreSQL"),
    (5671, "an AMQP broker"),
    (5672, "an AMQP broker"),
    (5984, "CouchDB"),
    (6379, "Redis"),
    (7687, "Neo4j"),
    (8883, "an MQTT broker"),
    (9042, "Cassandra"),
    (9092, "Kafka"),
    (9200, "Elasticsearch"),
    (9300, "Elasticsearch"),
    (10250, "a kubelet"),
    (10255, "a kubelet"),
    (11211, "memcached"),
    (16379, "Redis"),
    (25672, "RabbitMQ"),
    (26379, "Redis Sentinel"),
    (27017, "MongoDB"),
    (27018, "MongoDB"),
    (27019, "MongoDB"),
    (28015, "RethinkDB"),
    (61613, "a STOMP broker"),
    (61616, "ActiveMQ"),
];

/// What listens there instead of a web server.
pub(super) fn refused(port: u16) -> Option<&'static str> {
    let store = STORES.iter().find(|(at, _)| *at == port).map(|(_, what)| *what);
    store.or_else(|| BAD.contains(&port).then_some("another protocol's server"))
}
