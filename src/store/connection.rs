//! Owns how Herald talks to Redis: connections with a purpose, single commands, scripts. Never retries what may have run,
//! and never reconnects by itself: the user of a connection knows what is at stake.
//!
//! Redis is one server, a Cluster, or a master that sentinels watch, and `topology.rs` knows which of its nodes to ask. A connection
//! is to the node that serves its home, the slot that its user is there for; what is of other slots it asks of their nodes.

use std::{
    fmt,
    fmt::Display,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo, Pipeline, ProtocolVersion,
    RedisConnectionInfo, RedisError, RedisResult, RedisWrite, ToRedisArgs, Value,
    aio::{AsyncPushSender, MultiplexedConnection},
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
};

use tokio::{sync::Mutex, time::timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{
    encryption::{self, Encryption, TlsFiles},
    error::{StoreError, has_moved, is_of_a_slot},
    keys::{RegistryKeys, never},
    pool::{Made, Pool},
    topology::{Kind, Node, Others, Replaced, Server, Topology, is_of_cluster, slot_of},
    wakeup::Ear,
};
use crate::{
    clock,
    config::{RedisKind, RedisPlaces, redis_places},
    facts::partition::Slot,
    keyring::Keyring,
    tls::{FileError, install_crypto_provider},
};

/// A server that does not accept, encrypt and greet within this time is as good as gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A batch of 500 deliveries costs Redis a few milliseconds; a fork or an fsync of a slow disk can stall it for
/// seconds. There is no point in waiting for an answer longer than the default lease lasts; nor once another node has taken
/// the silent one's place: see [`Server::answers`].
pub(in crate::store) const WORK_TIMEOUT: Duration = Duration::from_secs(5);

/// For people, and for loading a whole registry: these are slower, and nothing is lost while they wait.
const OTHER_TIMEOUT: Duration = Duration::from_secs(10);

/// A shared connection that was used so lately is believed to be there.
const PROVEN_FOR: Duration = Duration::from_millis(500);

/// How long one that was not used lately may take to show that it is there.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// After a shared connection could not be made, until the next try.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

/// A command that goes to another node behind a script waits no longer for its answer: the script's is there.
const THEN_TIMEOUT: Duration = Duration::from_secs(1);

/// On a connection that only waits, a peer that has vanished silently is noticed after about 20 s.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 2;

/// What a connection is for. This fixes how long its caller waits for an answer; the library's default of 500 ms would
/// also end blocking reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Fenced reads and settles.
    Work,
    /// Waiting: no time limit of its own; the caller sets one around the wait.
    Wakeup,
    /// Renewals: an answer that comes later than this is of no use.
    Lease(Duration),
    /// Adding events in bulk: the caller waits no longer than this for an answer and then adds them again.
    Produce,
    /// Everything else.
    Other,
}

impl Purpose {
    fn response_timeout(self) -> Option<Duration> {
        match self {
            Self::Work | Self::Produce => Some(WORK_TIMEOUT),
            Self::Wakeup => None,
            Self::Lease(timeout) => Some(timeout),
            Self::Other => Some(OTHER_TIMEOUT),
        }
    }
}

/// Where Redis is and how to get in. Cheap to clone; holds no connection.
#[derive(Clone)]
pub struct Redis {
    client: Client,
    address: Arc<str>,
    /// Of a `rediss://` server.
    encryption: Option<Arc<Encryption>>,
    topology: Arc<Topology>,
    /// The slot whose node its connections are to.
    home: Slot,
    keyring: Keyring,
    /// Whose connections it uses, where they are shared.
    pool: Option<Pool>,
}

impl Redis {
    /// From `redis://`, `rediss://` (certificates checked against the system's roots) or `unix://`, which lead to one server or to any
    /// node of a Cluster; from `redis+cluster://` or `rediss+cluster://` with several nodes, of which one must answer; from
    /// `redis+sentinel://` or `rediss+sentinel://` with sentinels and the name that they have for the master.
    pub fn new(url: &str) -> Result<Self, StoreError> {
        Self::trusting(url, TlsFiles::default())
    }

    /// The same, with what these files say of a `rediss://` server. They are read for each connection.
    pub fn trusting(url: &str, files: TlsFiles) -> Result<Self, StoreError> {
        let unusable = |error: redis::RedisError| StoreError::Url { cause: error.to_string() };
        let RedisPlaces { nodes, kind } = redis_places(url).map_err(|cause| StoreError::Url { cause })?;
        let infos: Vec<_> = nodes
            .iter()
            .map(|node| node.as_str().into_connection_info())
            .collect::<Result<_, _>>()
            .map_err(unusable)?;
        let seeds: Vec<Node> = infos.iter().filter_map(|info| node_of(info.addr())).collect();
        // All have the same name and password.
        let info = infos.into_iter().next().ok_or_else(|| StoreError::Url { cause: "it names no host".to_owned() })?;
        let encryption = match info.addr() {
            ConnectionAddr::TcpTls { insecure: true, .. } => {
                let cause = "Redis' name is always checked: leave #insecure out".to_owned();
                return Err(StoreError::Url { cause });
            }
            ConnectionAddr::TcpTls { host, port, .. } => {
                install_crypto_provider();
                Some(Arc::new(Encryption::new(host.clone(), *port, files)))
            }
            _ => None,
        };
        let all = || seeds.iter().map(Node::to_string).collect::<Vec<_>>().join(",");
        let (address, kind) = match kind {
            RedisKind::OfOne => (info.addr().to_string(), Kind::Unknown),
            RedisKind::Cluster => (all(), Kind::Cluster),
            RedisKind::Sentinels(master) => (format!("{master} of {}", all()), Kind::Watched(master.into())),
        };
        let client = Client::open(info.set_tcp_settings(tcp_settings())).map_err(unusable)?;
        let (topology, home) = (Arc::new(Topology::new(seeds, kind)), RegistryKeys::slot());
        Ok(Self {
            client,
            address: address.into(),
            encryption,
            topology,
            home,
            keyring: Keyring::default(),
            pool: None,
        })
    }

    /// The same, for those that are there for this slot: in a Cluster, their connections are to the node that serves it, which tells
    /// them its time and its state, and they end as it stops serving it. Until then, home is the slot of the registry.
    pub fn at_home_in(&self, slot: Slot) -> Self {
        Self { home: slot, ..self.clone() }
    }

    /// Where its connections are to.
    pub(in crate::store) fn home(&self) -> Slot {
        self.home
    }

    /// The same, with connections that all who have this pool share, those that wait for answers without limit excepted.
    pub fn sharing(&self, pool: Pool) -> Self {
        Self { pool: Some(pool), ..self.clone() }
    }

    pub(in crate::store) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Reads the files of its certificates, as connecting does.
    pub fn check_files(&self) -> Result<(), FileError> {
        self.encryption.as_ref().map_or(Ok(()), |encryption| encryption.check())
    }

    /// The same, with the keys that seal what it holds. Without them, nothing is sealed and nothing that is sealed opens.
    pub fn sealed_by(self, keyring: Keyring) -> Self {
        Self { keyring, ..self }
    }

    /// The keys that it was given.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Host and port or the socket's path, for people. Never the user or the password.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The same of the server that its connections are to, where Redis is several and it is known which.
    pub async fn home_address(&self) -> String {
        let is_known = matches!(self.topology.kind(), Kind::Cluster | Kind::Watched(_));
        let home = if is_known { self.node_of(self.home).await.ok() } else { None };
        home.map_or_else(|| self.address().to_owned(), |node| node.to_string())
    }

    /// Whether that is said of one of its servers, by host and port, of those that a Cluster or sentinels last named.
    pub fn has_node(&self, is_it: impl Fn(&str, u16) -> bool) -> bool {
        let map = self.topology.last_map();
        map.is_some_and(|map| map.nodes().iter().any(|node| is_it(&node.host, node.port)))
    }

    /// Those of the registry and of its home.
    pub(in crate::store) fn own_slots(&self) -> Vec<u16> {
        vec![RegistryKeys::slot().number(), self.home.number()]
    }

    /// How the connection to Redis is protected.
    pub fn reach(&self) -> Reach {
        match self.client.get_connection_info().addr() {
            ConnectionAddr::Unix(_) => Reach::Socket,
            ConnectionAddr::TcpTls { .. } => Reach::Encrypted,
            ConnectionAddr::Tcp(host, _) if is_this_machine(host) => Reach::ThisMachine,
            ConnectionAddr::Tcp(..) => Reach::Plain,
            _ => Reach::Plain,
        }
    }

    /// Whether Redis obeys a client with neither a name nor a password. `None` if it cannot be asked.
    pub async fn lets_strangers_in(&self) -> Option<bool> {
        let asked = match self.as_stranger().ok()?.connect(Purpose::Other).await {
            Ok(mut connection) => {
                connection.query::<redis::Value>("ask as a stranger", &redis::cmd("TIME")).await.map(drop)
            }
            Err(error) => Err(error),
        };
        match asked {
            Ok(()) => Some(true),
            Err(StoreError::Denied { .. }) => Some(false),
            Err(_) => None,
        }
    }

    /// The same place for one who has neither a name nor a password.
    pub(in crate::store) fn as_stranger(&self) -> Result<Self, StoreError> {
        self.introduced_by(RedisConnectionInfo::default())
    }

    /// The same for what has no databases.
    pub(in crate::store) fn without_database(&self) -> Result<Self, StoreError> {
        self.introduced_by(self.client.get_connection_info().redis_settings().clone().set_db(0))
    }

    fn introduced_by(&self, settings: RedisConnectionInfo) -> Result<Self, StoreError> {
        let client = Client::open(self.client.get_connection_info().clone().set_redis_settings(settings));
        let client = client.map_err(|error| StoreError::Url { cause: error.to_string() })?;
        Ok(Self { client, ..self.clone() })
    }

    pub async fn connect(&self, purpose: Purpose) -> Result<Connection, StoreError> {
        match &self.pool {
            Some(pool) => {
                let node = self.home_node().await?;
                let shared = pool.connection(node, purpose, async || self.connect_alone(purpose).await).await?;
                Ok(Connection { home: self.home, ..shared })
            }
            None => self.connect_alone(purpose).await,
        }
    }

    /// The same, with connections that nobody shares: for who may keep one waiting.
    pub fn apart(&self) -> Self {
        Self { pool: None, ..self.clone() }
    }

    /// What hears of changes at the node of its home, shared where connections are.
    pub(in crate::store) async fn ear(&self) -> Result<Ear, StoreError> {
        match &self.pool {
            Some(pool) => pool.ear(self.home_node().await?, async || Ear::connect(self).await).await,
            None => Ear::connect(self).await,
        }
    }

    /// None where there is only one, or it is not known yet how many there are.
    async fn home_node(&self) -> Result<Option<Node>, StoreError> {
        match self.topology.kind() {
            Kind::Unknown | Kind::OneServer => Ok(None),
            Kind::Cluster | Kind::Watched(_) => self.node_of(self.home).await.map(Some),
        }
    }

    async fn connect_alone(&self, purpose: Purpose) -> Result<Connection, StoreError> {
        let (wire, node) = self.reach_home(None, config(purpose)).await?;
        let connection = self.connection(wire, node, purpose != Purpose::Wakeup);
        let others = match (&connection.server, self.topology.kind()) {
            (Some(server), Kind::Cluster) => {
                Some(Arc::new(Others::new(Arc::new(self.clone()), server.node.clone(), config(purpose))))
            }
            _ => None,
        };
        Ok(Connection { others, ..connection })
    }

    /// A connection on which Redis can push what has changed (RESP3), to the node of its home alone. `hear` runs where the
    /// connection's answers are read, so it must not wait.
    pub(in crate::store) async fn connect_tracking(
        &self,
        hear: impl AsyncPushSender,
    ) -> Result<Connection, StoreError> {
        let config = config(Purpose::Wakeup).set_push_sender(hear);
        let (wire, node) = self.reach_home(Some(ProtocolVersion::RESP3), config).await?;
        Ok(self.connection(wire, node, true))
    }

    fn connection(&self, wire: Wire, node: Option<Node>, is_prompt: bool) -> Connection {
        let (topology, keyring) = (self.topology.clone(), self.keyring.clone());
        let server = node.map(|node| Arc::new(Server::new(Arc::new(self.clone()), node, is_prompt)));
        Connection { wire, server, others: None, home: self.home, topology, keyring, is_over: Arc::default() }
    }

    /// To the only server; or, and then it is named, to the master or to the node of a Cluster that serves one's home. Who connects
    /// first finds out what Redis is.
    async fn reach_home(
        &self,
        protocol: Option<ProtocolVersion>,
        config: AsyncConnectionConfig,
    ) -> Result<(Wire, Option<Node>), StoreError> {
        if let Kind::Unknown = self.topology.kind() {
            let mut wire = self.open(None, protocol, config.clone()).await?;
            let is_cluster = is_of_cluster(&mut wire).await?;
            self.topology.learn(is_cluster);
            if !is_cluster {
                return Ok((wire, None));
            }
        }
        match self.topology.kind() {
            Kind::Unknown | Kind::OneServer => Ok((self.open(None, protocol, config).await?, None)),
            Kind::Cluster => {
                let node = self.node_of(self.home).await?;
                let opened = self.open_there(&node, self.open(Some(&node), protocol, config)).await;
                Ok((opened.inspect_err(|_| self.topology.doubt(false))?, Some(node)))
            }
            Kind::Watched(_) => {
                let master = self.node_of(self.home).await?;
                let opened = self.open_there(&master, self.open_master(&master, protocol, config)).await;
                Ok((opened.inspect_err(|_| self.topology.doubt(false))?, Some(master)))
            }
        }
    }

    /// One that is frozen lets in whoever comes, and greets nobody.
    async fn open_there(
        &self,
        node: &Node,
        opening: impl Future<Output = Result<Wire, StoreError>>,
    ) -> Result<Wire, StoreError> {
        let server = Server::new(Arc::new(self.clone()), node.clone(), true);
        let opened = server.answers(self.home, opening).await;
        opened.unwrap_or_else(|_| Err(is_elsewhere(Subject("connect to", &node.to_string()))))
    }

    /// Sentinels may be late, and one that they have replaced comes back as what it was: it is asked itself.
    async fn open_master(
        &self,
        master: &Node,
        protocol: Option<ProtocolVersion>,
        config: AsyncConnectionConfig,
    ) -> Result<Wire, StoreError> {
        let mut wire = self.open(Some(master), protocol, config).await?;
        let role: Vec<Value> =
            wire.ask("ask for its role the server that the sentinels name", &redis::cmd("ROLE")).await?;
        match role.first() {
            Some(Value::BulkString(role)) if role == b"master" => Ok(wire),
            _ => {
                let cause = "its sentinels name it, and it is no master".to_owned();
                let remedy =
                    "they are asked again; if this stays, see what they say: `redis-cli -p 26379 SENTINEL MASTERS`";
                Err(StoreError::refused(Subject("connect to", &master.to_string()), cause, remedy))
            }
        }
    }

    /// To this node, or to the first one that the URL names.
    pub(in crate::store) async fn open(
        &self,
        node: Option<&Node>,
        protocol: Option<ProtocolVersion>,
        config: AsyncConnectionConfig,
    ) -> Result<Wire, StoreError> {
        let client = self.client_of(node, protocol)?;
        let address = client.get_connection_info().addr().to_string();
        let subject = Subject("connect to", &address);
        let Some(encryption) = &self.encryption else {
            return match client.get_multiplexed_async_connection_with_config(&config).await {
                Ok(inner) => Ok(Wire { inner, _driver: None }),
                Err(error) => Err(explained(&client, StoreError::new(subject, &error), &error).await),
            };
        };
        let encryption = match node {
            Some(node) => &Arc::new(encryption.at(node.host.clone(), node.port)),
            None => encryption,
        };
        let connect = async {
            let stream = encryption
                .connect()
                .await
                .map_err(|refused| StoreError::refused(subject, refused.cause, refused.remedy))?;
            let settings = client.get_connection_info().redis_settings();
            let connected = MultiplexedConnection::new_with_config(settings, stream, config).await;
            let (inner, driver) = connected.map_err(|error| StoreError::new(subject, &error))?;
            let driver = AbortOnDropHandle::new(tokio::spawn(driver));
            Ok(Wire { inner, _driver: Some(Arc::new(driver)) })
        };
        timeout(CONNECT_TIMEOUT, connect).await.unwrap_or_else(|_| Err(StoreError::late(subject)))
    }

    /// Who connects to a node does so with the name and the password of the URL.
    fn client_of(&self, node: Option<&Node>, protocol: Option<ProtocolVersion>) -> Result<Client, StoreError> {
        if node.is_none() && protocol.is_none() {
            return Ok(self.client.clone());
        }
        let mut info = self.client.get_connection_info().clone();
        if let Some(protocol) = protocol {
            let settings = info.redis_settings().clone().set_protocol(protocol);
            info = info.set_redis_settings(settings);
        }
        if let Some(Node { host, port }) = node {
            let (host, port) = (host.clone(), *port);
            info = info.set_addr(match &self.encryption {
                Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
                None => ConnectionAddr::Tcp(host, port),
            });
        }
        Client::open(info).map_err(|error| StoreError::Url { cause: error.to_string() })
    }
}

/// Nobody waits any longer for a node that others have replaced.
pub(in crate::store) fn is_elsewhere(subject: impl Display) -> StoreError {
    StoreError::away(subject, "another node serves it by now")
}

/// Somebody who hangs up at the first word may speak TLS alone, and says nothing to those who do not.
async fn explained(client: &Client, error: StoreError, cause: &redis::RedisError) -> StoreError {
    let StoreError::Unavailable { subject, .. } = &error else { return error };
    let has_hung_up = cause.is_connection_dropped() && !cause.is_connection_refusal();
    if let ConnectionAddr::Tcp(host, port) = client.get_connection_info().addr()
        && has_hung_up
        && timeout(CONNECT_TIMEOUT, encryption::is_spoken_at(host, *port)).await == Ok(true)
    {
        let (cause, remedy) = ("it speaks TLS at this port".to_owned(), "write rediss:// in redis.url");
        return StoreError::Unavailable { subject: subject.clone(), cause, remedy };
    }
    error
}

/// None for a socket.
fn node_of(address: &ConnectionAddr) -> Option<Node> {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            Some(Node { host: host.clone(), port: *port })
        }
        _ => None,
    }
}

/// What lies between Herald and Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// A socket in the file system, whose permissions say who may connect.
    Socket,
    /// TCP that does not leave this machine.
    ThisMachine,
    Encrypted,
    /// A network on which others may read events, endpoints' secrets and Redis' password.
    Plain,
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Redis({})", self.address)
    }
}

pub(in crate::store) fn config(purpose: Purpose) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(purpose.response_timeout())
}

/// Without `nodelay`, a small command that follows another one waits until the first is acknowledged.
fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true).set_keepalive(tcp_keepalive())
}

pub(in crate::store) fn tcp_keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_PROBES)
}

/// What a call was for: a verb and its object, to complete "cannot …" in an error message. Only formatted for errors.
#[derive(Debug, Clone, Copy)]
pub(in crate::store) struct Subject<'a>(pub &'a str, pub &'a str);

impl Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.1)
    }
}

/// One multiplexed connection to one server.
#[derive(Clone)]
pub(in crate::store) struct Wire {
    inner: MultiplexedConnection,
    /// What moves its bytes, where the library does not do that by itself. It ends with the last clone.
    _driver: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Wire {
    pub(in crate::store) async fn ask<T: FromRedisValue>(
        &mut self,
        subject: &str,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        command.query_async(&mut self.inner).await.map_err(|error| StoreError::new(subject, &error))
    }
}

/// A connection to the only server, or to one node of a Cluster with ways to the others. Clones share it. After
/// [`StoreError::Unavailable`] it is useless.
#[derive(Clone)]
pub struct Connection {
    wire: Wire,
    /// Where its wire leads, if another can take that one's place.
    server: Option<Arc<Server>>,
    /// Of a Cluster's.
    others: Option<Arc<Others>>,
    /// What its user is there for, and is told that the node serves it no more.
    home: Slot,
    topology: Arc<Topology>,
    keyring: Keyring,
    /// Somebody has found that it is of no use any more.
    is_over: Arc<AtomicBool>,
}

impl Made for Connection {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

impl Connection {
    /// Whether it has failed, for whichever of those who share it.
    pub fn is_over(&self) -> bool {
        Made::is_over(self)
    }

    /// For all who share it.
    pub(in crate::store) fn give_up(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// The keys that seal what is written through it.
    pub(in crate::store) fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Runs one command. `subject` is a [`Subject`] or one text.
    pub(in crate::store) async fn query<T: FromRedisValue>(
        &mut self,
        subject: impl Display,
        command: &Cmd,
    ) -> Result<T, StoreError> {
        let mut way = self.way(|| slot_of(command)).await?;
        let (server, slot) = self.server_of(&way);
        let answer = answer(server, slot, command.query_async(way.of(&mut self.wire))).await;
        self.understood(subject, answer, &way)
    }

    /// Runs several commands that need not be one step. All their keys are in one slot.
    pub(in crate::store) async fn pipeline<T: FromRedisValue>(
        &mut self,
        subject: impl Display,
        commands: &Pipeline,
    ) -> Result<T, StoreError> {
        let mut way = self.way(|| commands.cmd_iter().find_map(slot_of)).await?;
        let (server, slot) = self.server_of(&way);
        let answers = answer(server, slot, commands.query_async(way.of(&mut self.wire))).await;
        self.understood(subject, answers, &way)
    }

    /// Runs a script. `NOSCRIPT` means that it did not run, so loading it and asking again is the only safe retry.
    pub(in crate::store) async fn run<T: FromRedisValue>(
        &mut self,
        subject: impl Display,
        call: &ScriptCall<'_>,
    ) -> Result<T, StoreError> {
        /// Scripts can be flushed between loading and running them; if someone keeps flushing them, we give up.
        const LOADS: usize = 3;
        let mut way = self.way(|| slot_of(&call.command)).await?;
        let (server, slot) = self.server_of(&way);
        for _ in 0..LOADS {
            let said = answer(server.clone(), slot, call.command.query_async(way.of(&mut self.wire))).await;
            match self.understood(&subject, said, &way) {
                Err(StoreError::NoScript { .. }) => {}
                said => return said,
            }
            let load = redis::cmd("SCRIPT").arg("LOAD").arg(call.script.source).to_owned();
            let loaded = answer(server.clone(), slot, load.query_async::<String>(way.of(&mut self.wire))).await;
            let sha = self.understood(Subject("load the script", call.script.name), loaded, &way)?;
            if sha != call.script.sha {
                return Err(StoreError::unexpected(
                    subject,
                    format_args!("Redis gave the script {} another SHA-1", call.script.name),
                ));
            }
        }
        self.query(subject, &call.command).await
    }

    /// Runs a script and then a command: the command does not begin before the script. Where one server has both, they are sent
    /// together. A failure of the command is not a failure of the script.
    pub(in crate::store) async fn run_then<T: FromRedisValue, U: FromRedisValue>(
        &mut self,
        subject: impl Display,
        call: &ScriptCall<'_>,
        then: &Cmd,
    ) -> Result<(T, Option<U>), StoreError> {
        if !self.are_together(&call.command, then).await {
            let first = self.run(&subject, call).await?;
            let second = timeout(THEN_TIMEOUT, self.query(subject, then)).await;
            return Ok((first, second.ok().and_then(Result::ok)));
        }
        let mut both = Pipeline::with_capacity(2);
        both.add_command(call.command.clone()).add_command(then.clone()).ignore_errors();
        let answers: Vec<RedisResult<Value>> = self.pipeline(&subject, &both).await?;
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or(Ok(Value::Nil));
        let (first, second) = (next(), next());
        match first {
            Ok(first) => {
                let first = T::from_redis_value(first).map_err(|error| StoreError::unexpected(&subject, error))?;
                Ok((first, second.ok().and_then(|value| U::from_redis_value(value).ok())))
            }
            Err(error) => match self.failed(&subject, &error, &Way::Own) {
                // The script did not run. By the time it has, the command's answer is too old.
                StoreError::NoScript { .. } => {
                    let first = self.run(&subject, call).await?;
                    Ok((first, self.query(&subject, then).await.ok()))
                }
                error => Err(error),
            },
        }
    }

    /// Runs one script several times, for keys of one node, and then a command behind all of them. Each has an answer of its own.
    /// `loads`: the script is loaded before, so that the command, which may wait for long, runs only once even where it is not there.
    pub(in crate::store) async fn run_each<T: FromRedisValue>(
        &mut self,
        subject: impl Display,
        calls: &[ScriptCall<'_>],
        loads: bool,
        then: Option<&Cmd>,
    ) -> Result<(Vec<Result<Value, StoreError>>, Option<T>), StoreError> {
        let Some(first) = calls.first() else { return Ok((Vec::new(), None)) };
        let mut way = self.way(|| slot_of(&first.command)).await?;
        let (server, slot) = self.server_of(&way);
        let mut answers: Vec<Option<Result<Value, StoreError>>> = calls.iter().map(|_| None).collect();
        let mut last = None;
        // Those that did not run because the script was not there run a second time, once it is.
        for is_loaded in [loads, true] {
            let open: Vec<usize> = (0..calls.len()).filter(|at| answers[*at].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let mut pipeline = Pipeline::with_capacity(open.len() + 2);
            if is_loaded {
                pipeline.cmd("SCRIPT").arg("LOAD").arg(first.script.source);
            }
            for command in open.iter().map(|at| &calls[*at].command).chain(then) {
                pipeline.add_command(command.clone());
            }
            pipeline.ignore_errors();
            let sent = answer(server.clone(), slot, pipeline.query_async(way.of(&mut self.wire))).await;
            let said: Vec<RedisResult<Value>> = self.understood(&subject, sent, &way)?;
            let mut said = said.into_iter().skip(usize::from(is_loaded));
            for (at, said) in open.iter().zip(&mut said) {
                let said = said.map_err(|error| self.failed(&subject, &error, &way));
                answers[*at] = match said {
                    Err(StoreError::NoScript { .. }) if !is_loaded => None,
                    said => Some(said),
                };
            }
            last = said.next().and_then(Result::ok).and_then(|value| T::from_redis_value(value).ok());
        }
        Ok((answers.into_iter().flatten().collect(), last))
    }

    /// Whether both are for one's own node.
    async fn are_together(&self, one: &Cmd, other: &Cmd) -> bool {
        let Some(others) = &self.others else { return true };
        for command in [one, other] {
            if let Some(slot) = slot_of(command)
                && !matches!(others.node(slot, self.home).await, Ok(None))
            {
                return false;
            }
        }
        true
    }

    /// To the node of this slot. Asks for the slot only where there is more than one.
    async fn way(&self, slot: impl FnOnce() -> Option<Slot>) -> Result<Way, StoreError> {
        let Some(others) = &self.others else { return Ok(Way::Own) };
        let Some(slot) = slot() else { return Ok(Way::Own) };
        match others.node(slot, self.home).await? {
            Some(node) => {
                let wire = others.wire(&node).await.inspect_err(|_| self.topology.doubt(false))?;
                Ok(Way::To(node, slot, wire))
            }
            None => Ok(Way::Own),
        }
    }

    /// Who is to answer, and for which slot.
    fn server_of(&self, way: &Way) -> (Option<Arc<Server>>, Slot) {
        match (way, &self.others, &self.server) {
            (Way::To(node, slot, _), Some(others), Some(server)) => {
                (Some(Arc::new(server.like(others.redis(), node.clone()))), *slot)
            }
            _ => (self.server.clone(), self.home),
        }
    }

    /// Returns once another node serves this slot in place of the one that it is connected to, as somebody has found out.
    pub(in crate::store) async fn is_replaced(&self, slot: Slot) {
        match &self.server {
            Some(server) => {
                server.is_replaced(slot).await;
            }
            None => std::future::pending().await,
        }
    }

    fn understood<T>(
        &self,
        subject: impl Display,
        answer: Result<RedisResult<T>, Replaced>,
        way: &Way,
    ) -> Result<T, StoreError> {
        match answer {
            Ok(answer) => answer.map_err(|error| self.failed(subject, &error, way)),
            Err(Replaced { wholly }) => {
                match (&self.others, way) {
                    (Some(others), Way::To(node, ..)) => others.forget(node),
                    // Where it serves other slots yet, it is only late for those who have it for these.
                    _ if wholly => self.give_up(),
                    _ => {}
                }
                Err(is_elsewhere(subject))
            }
        }
    }

    fn failed(&self, subject: impl Display, cause: &RedisError, way: &Way) -> StoreError {
        let error = StoreError::new(subject, cause);
        if let StoreError::Unavailable { .. } = &error {
            self.topology.doubt(has_moved(cause));
            match (&self.others, way) {
                (Some(others), Way::To(node, ..)) => others.forget(node),
                // A slot that has moved, or is on its way, is nothing to those of the others.
                _ if is_of_a_slot(cause) => {}
                _ => self.give_up(),
            }
        }
        error
    }

    /// Has the server of this run id rewrite its append-only file, for all of the process: returns whether it is the first to ask. A server
    /// that was killed within a script starts from a file whose last transaction has no end: Redis 7.0 leaves it out at this start but takes
    /// it for complete at the next one, so the file must be rewritten in between. A rewrite that is already running will do.
    pub async fn rewrite_aof(&mut self, run_id: &str) -> Result<bool, StoreError> {
        if !self.topology.sees_to(run_id) {
            return Ok(false);
        }
        match self.query::<redis::Value>("have the append-only file rewritten", &redis::cmd("BGREWRITEAOF")).await {
            Ok(_) | Err(StoreError::Other { .. }) => Ok(true),
            Err(error) => {
                self.topology.puts_back(run_id);
                Err(error)
            }
        }
    }

    /// What `INFO` says of the server.
    pub async fn server_info(&mut self) -> Result<ServerInfo, StoreError> {
        let text: String = self.query("ask for the server's state", &redis::cmd("INFO")).await?;
        ServerInfo::parse(&text)
    }
}

/// Where a command goes.
enum Way {
    Own,
    To(Node, Slot, Wire),
}

/// Waits for it, unless another node has the slot by then.
async fn answer<T>(
    server: Option<Arc<Server>>,
    slot: Slot,
    answer: impl Future<Output = RedisResult<T>>,
) -> Result<RedisResult<T>, Replaced> {
    match server {
        Some(server) => server.answers(slot, answer).await,
        None => Ok(answer.await),
    }
}

impl Way {
    fn of<'a>(&'a mut self, own: &'a mut Wire) -> &'a mut MultiplexedConnection {
        match self {
            Self::Own => &mut own.inner,
            Self::To(_, _, wire) => &mut wire.inner,
        }
    }
}

/// One connection for many at once, which is made anew after it failed.
#[derive(Clone)]
pub struct SharedConnection {
    redis: Redis,
    purpose: Purpose,
    state: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    connection: Option<Connection>,
    /// How many have been made: tells one from the next.
    made: u64,
    /// When it was last asked for.
    used: Option<Instant>,
    failed: Option<(Instant, StoreError)>,
}

impl SharedConnection {
    pub fn new(redis: Redis, purpose: Purpose) -> Self {
        Self { redis, purpose, state: Arc::default() }
    }

    pub async fn with<T>(&self, what: impl AsyncFnOnce(Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let (connection, number) = self.get().await?;
        let done = what(connection).await;
        if let Err(StoreError::Unavailable { .. }) = &done {
            let mut state = self.state.lock().await;
            if state.made == number {
                state.connection = None;
            }
        }
        done
    }

    /// Those that wait while it is made share what comes of it, or each would wait in turn for a server that is away.
    async fn get(&self) -> Result<(Connection, u64), StoreError> {
        let mut state = self.state.lock().await;
        let now = clock::now();
        let is_fresh = state.used.replace(now).is_some_and(|used| now < used + PROVEN_FOR);
        if let Some(connection) = state.connection.as_mut().filter(|connection| !connection.is_over()) {
            // One that has ended meanwhile tells so only when it is used, and whoever uses it would be told that Redis is away.
            if is_fresh || answers(&mut connection.wire).await {
                return Ok((connection.clone(), state.made));
            }
            state.connection = None;
        }
        if let Some((at, error)) = &state.failed
            && clock::now() < *at + CONNECT_PAUSE
        {
            return Err(error.clone());
        }
        match self.redis.connect(self.purpose).await {
            Ok(connection) => {
                let made = state.made + 1;
                *state = Shared { connection: Some(connection.clone()), made, used: Some(now), failed: None };
                Ok((connection, state.made))
            }
            Err(error) => {
                state.failed = Some((clock::now(), error.clone()));
                Err(error)
            }
        }
    }
}

/// Soon: whoever waits for the connection waits for this.
pub(in crate::store) async fn answers(wire: &mut Wire) -> bool {
    let time = redis::cmd("TIME");
    let asked = wire.ask::<Value>("look whether Redis answers", &time);
    timeout(ANSWERS_WITHIN, asked).await.is_ok_and(|answer| answer.is_ok())
}

/// A Lua script with its hash, made once: `static S: LazyLock<Script> = LazyLock::new(|| Script::new("name", …))`.
pub(in crate::store) struct Script {
    name: &'static str,
    source: &'static str,
    sha: String,
}

impl Script {
    pub(in crate::store) fn new(name: &'static str, source: &'static str) -> Self {
        Self { name, source, sha: redis::Script::new(source).get_hash().to_owned() }
    }

    /// From its file, whose first line has the flags, with what it shares with others put behind that line.
    pub(in crate::store) fn assembled(name: &'static str, file: &str, shared: &[&str]) -> Self {
        let (flags, rest) = file.split_once('\n').expect("a script has a first line with its flags");
        let source = [&[flags], shared, &[rest]].concat().join("\n");
        Self::new(name, source.leak())
    }

    /// Starts a call with its keys. They must all be known here, because their number is written before them. Behind them the script
    /// is given one more, which never exists.
    pub(in crate::store) fn keys(&self, keys: &[&str]) -> ScriptCall<'_> {
        self.call(redis::cmd("EVALSHA"), keys)
    }

    /// For a script that only reads: a user who may not write to its keys can run it too.
    pub(in crate::store) fn keys_to_read(&self, keys: &[&str]) -> ScriptCall<'_> {
        self.call(redis::cmd("EVALSHA_RO"), keys)
    }

    fn call(&self, mut command: Cmd, keys: &[&str]) -> ScriptCall<'_> {
        let never = keys.first().map(|key| never(key));
        command.arg(&self.sha).arg(keys.len() + never.iter().len()).arg(keys).arg(never);
        ScriptCall { script: self, command }
    }
}

pub(in crate::store) struct ScriptCall<'a> {
    script: &'a Script,
    command: Cmd,
}

impl ScriptCall<'_> {
    pub(in crate::store) fn arg(mut self, arg: impl ToRedisArgs) -> Self {
        self.command.arg(arg);
        self
    }

    /// The argument's text, written without allocating a string.
    pub(in crate::store) fn text(self, arg: impl fmt::Display) -> Self {
        self.texts([arg])
    }

    pub(in crate::store) fn texts(mut self, args: impl IntoIterator<Item: fmt::Display>) -> Self {
        for arg in args {
            self.command.write_arg_fmt(arg);
        }
        self
    }
}

/// The state of the server, as far as Herald's promises depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Random for each start of the server: a new value means a restart or a failover.
    pub run_id: String,
    pub version: String,
    pub is_primary: bool,
    pub is_cluster: bool,
    pub is_loading: bool,
    pub used_memory_bytes: u64,
    /// 0 means no limit.
    pub maxmemory_bytes: u64,
    pub maxmemory_policy: String,
    pub aof_enabled: bool,
    pub aof_last_write_ok: bool,
    pub evicted_keys: u64,
    pub connected_replicas: u64,
    pub uptime_s: u64,
}

impl ServerInfo {
    /// Major and minor version; `(0, 0)` for a text that is not a version.
    pub fn major_minor(&self) -> (u32, u32) {
        let mut parts = self.version.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }

    fn parse(text: &str) -> Result<Self, StoreError> {
        let field = |name: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim())
        };
        let needed = |name: &str| {
            field(name)
                .map(str::to_owned)
                .ok_or_else(|| StoreError::unexpected("read the answer of INFO", format_args!("it has no {name}")))
        };
        let number = |name: &str| field(name).and_then(|value| value.parse().ok()).unwrap_or(0);
        Ok(Self {
            run_id: needed("run_id")?,
            version: needed("redis_version")?,
            is_primary: field("role") == Some("master"),
            is_cluster: number("cluster_enabled") == 1,
            is_loading: number("loading") == 1,
            used_memory_bytes: number("used_memory"),
            maxmemory_bytes: number("maxmemory"),
            maxmemory_policy: field("maxmemory_policy").unwrap_or_default().to_owned(),
            aof_enabled: number("aof_enabled") == 1,
            aof_last_write_ok: field("aof_last_write_status") == Some("ok"),
            evicted_keys: number("evicted_keys"),
            connected_replicas: number("connected_slaves"),
            uptime_s: number("uptime_in_seconds"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_shows_in_neither_debug_nor_error() {
        let redis = Redis::new("redis://someone:hunter2@127.0.0.1:1/3").unwrap();
        assert_eq!(format!("{redis:?}"), "Redis(127.0.0.1:1)");
        for bad in [
            "rediss://:hunter2@h/#insecure",
            "redis://:hunter2@127.0.0.1/x",
            "http://:hunter2@h",
            "redis://:hunter2@0.0.0.0",
            "hunter2",
        ] {
            let error = Redis::new(bad).expect_err(bad);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn every_documented_form_of_the_url_is_taken() {
        for url in
            ["redis://127.0.0.1:6379", "redis://:p%40@h:1/2", "rediss://localhost:6380", "unix:///tmp/redis.sock"]
        {
            Redis::new(url).expect(url);
        }
    }

    #[test]
    fn what_lies_between_is_known_from_the_url() {
        for (url, reach) in [
            ("redis://127.0.0.1", Reach::ThisMachine),
            ("redis://localhost:1", Reach::ThisMachine),
            ("redis://[::1]:1", Reach::ThisMachine),
            ("redis://redis:6379", Reach::Plain),
            ("redis://10.0.0.1", Reach::Plain),
            ("rediss://redis.example", Reach::Encrypted),
            ("unix:///run/redis.sock", Reach::Socket),
        ] {
            assert_eq!(Redis::new(url).unwrap().reach(), reach, "{url}");
        }
    }

    #[test]
    fn every_script_declares_a_key_that_never_exists() {
        let script = Script::new("nothing", "#!lua\nreturn 1");
        for call in [script.keys(&["{s}:a", "{s}:b"]), script.keys_to_read(&["{s}:a", "{s}:b"])] {
            let call = call.arg("an argument").command;
            let words: Vec<_> = call.args_iter().skip(2).collect();
            let expected = ["3", "{s}:a", "{s}:b", "herald:{s}:never", "an argument"];
            assert_eq!(words, expected.map(|word| redis::Arg::Simple(word.as_bytes())));
        }
        let without = script.keys(&[]).command;
        assert_eq!(without.args_iter().last(), Some(redis::Arg::Simple(&b"0"[..])));
    }

    #[test]
    fn info_is_read_by_name() {
        let text = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\nrole:master\r\nmaxmemory:100\r\nused_memory:90\r\n\
                    maxmemory_policy:noeviction\r\naof_enabled:1\r\naof_last_write_status:ok\r\n";
        let info = ServerInfo::parse(text).unwrap();
        assert_eq!((info.run_id.as_str(), info.major_minor()), ("abc", (7, 0)));
        assert_eq!((info.used_memory_bytes, info.maxmemory_bytes), (90, 100));
        assert!(info.aof_enabled && info.aof_last_write_ok && info.is_primary && !info.is_loading);
        assert!(ServerInfo::parse("nothing").is_err());
    }
}
