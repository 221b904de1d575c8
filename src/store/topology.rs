//! Owns where the nodes of Redis are: whether it is one server, a Cluster or a master with sentinels, and which node serves a slot.
//! A Cluster or sentinels decide that; this is what they last said, and every failure makes them be asked again. Never sends anything
//! twice: whoever was told that a slot has moved ends what they were doing, as after any failure, and begins anew at its new node.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use redis::{AsyncConnectionConfig, Cmd, Value};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    connection::{Purpose, Redis, Wire, answers, config},
    error::StoreError,
    sentinel,
};
use crate::{clock, facts::partition::Slot};

/// How old the map becomes before a Cluster that has not failed is asked again: it may have new nodes to ask.
const MAP_AGE: Duration = Duration::from_secs(30);

/// Between two looks at a Cluster that is in trouble.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// A node that does not say within this time where the slots are is passed over: the next one knows as well.
pub(super) const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// After a connection to a node beside one's own could not be made, until the next try. Others wait for it meanwhile.
const NODE_PAUSE: Duration = Duration::from_secs(1);

/// One that was used so lately is believed to be there.
const PROVEN_FOR: Duration = Duration::from_millis(500);

/// A node that has not answered for so long may have been replaced. A fork or a slow disk can take longer: whether it was, the others
/// say, and until they do it is waited for.
const SILENT_AFTER: Duration = Duration::from_secs(1);

/// How often they are asked while it is silent, once for all who wait.
const ASK_EVERY: Duration = Duration::from_millis(250);

/// What to do about a slot that nobody serves.
const UNCOVERED: &str = "look at it with `redis-cli --cluster check`";

/// Where a node listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Node {
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Which node serves which slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotMap {
    /// Ordered, without overlaps.
    ranges: Vec<Range>,
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    master: Node,
}

impl SlotMap {
    /// From the answer to `CLUSTER SLOTS`. A node that does not know its own name has that by which it was asked. What cannot be
    /// understood of it serves nothing: the slot that is missed is named when it is wanted.
    fn read(answer: &Value, asked: Option<&Node>) -> Self {
        let (mut ranges, mut nodes, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        let Value::Array(rows) = answer else { return Self { ranges, nodes } };
        for row in rows {
            let Value::Array(row) = row else { continue };
            let [Value::Int(first), Value::Int(last), places @ ..] = &row[..] else { continue };
            let places: Vec<Option<Node>> = places.iter().map(|place| node(place, asked)).collect();
            for node in places.iter().flatten() {
                if seen.insert(node.clone()) {
                    nodes.push(node.clone());
                }
            }
            let slot = |number: &i64| u16::try_from(*number).ok().and_then(Slot::new);
            if let (Some(first), Some(last), Some(Some(master))) = (slot(first), slot(last), places.first())
                && first <= last
            {
                ranges.push(Range { first: first.number(), last: last.number(), master: master.clone() });
            }
        }
        ranges.sort_by_key(|range| range.first);
        // Where two say that they serve a slot, the first is asked, and says better.
        ranges.dedup_by(|later, earlier| later.first <= earlier.last);
        Self { ranges, nodes }
    }

    /// All that were named, replicas too.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Where one server has all of them, with its replicas.
    pub fn of_one(master: Node, replicas: Vec<Node>) -> Self {
        let all = Range { first: 0, last: u16::MAX, master: master.clone() };
        Self { ranges: vec![all], nodes: [vec![master], replicas].concat() }
    }

    /// Whether it serves any slot.
    fn has_master(&self, node: &Node) -> bool {
        self.ranges.iter().any(|range| range.master == *node)
    }

    pub fn node(&self, slot: Slot) -> Option<&Node> {
        let after = self.ranges.partition_point(|range| range.first <= slot.number());
        let range = self.ranges.get(after.checked_sub(1)?)?;
        (slot.number() <= range.last).then_some(&range.master)
    }
}

/// `[host, port, …]`. Redis writes nothing, or no text, for a host that it does not know, and `?` for a name that was not set.
fn node(place: &Value, asked: Option<&Node>) -> Option<Node> {
    let Value::Array(place) = place else { return None };
    let [host, Value::Int(port), ..] = &place[..] else { return None };
    let port = u16::try_from(*port).ok().filter(|port| *port > 0)?;
    let host = match host {
        Value::Nil => None,
        Value::BulkString(bytes) if bytes.is_empty() => None,
        Value::BulkString(bytes) => Some(String::from_utf8(bytes.clone()).ok()?),
        Value::SimpleString(text) => Some(text.clone()),
        _ => return None,
    };
    match host {
        Some(host) if host == "?" => None,
        Some(host) => Some(Node { host, port }),
        None => Some(Node { host: asked?.host.clone(), port }),
    }
}

/// What is known of where Redis' nodes are. Shared by all that connect to it.
pub(super) struct Topology {
    /// Those that the URL names: servers, or sentinels.
    seeds: Vec<Node>,
    state: Mutex<State>,
    /// Held by who asks, so that one asks for all.
    asking: tokio::sync::Mutex<()>,
    /// Servers, by their run ids, whose append-only file was seen to.
    seen_to: Mutex<BTreeSet<String>>,
    /// Tells whoever waits for a node that the map is another.
    changed: watch::Sender<()>,
}

struct State {
    kind: Kind,
    /// What a Cluster or sentinels last said.
    map: Option<Arc<SlotMap>>,
    /// Something has failed since the map was made.
    is_doubted: bool,
    /// When they were last asked, with success or without.
    asked: Option<Instant>,
    /// Which node is asked next: one that has lost sight of the others may be wrong for long.
    turn: usize,
    /// One that somebody waits for: it is asked last.
    silent: Option<Node>,
}

/// What the URL leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// The URL does not say; whoever connects first finds out.
    Unknown,
    OneServer,
    Cluster,
    /// The master of this name, which has every slot.
    Watched(Arc<str>),
}

impl Topology {
    pub fn new(seeds: Vec<Node>, kind: Kind) -> Self {
        let state = State { kind, map: None, is_doubted: false, asked: None, turn: 0, silent: None };
        let changed = watch::channel(()).0;
        Self {
            seeds,
            state: Mutex::new(state),
            asking: tokio::sync::Mutex::default(),
            seen_to: Mutex::default(),
            changed,
        }
    }

    /// Whether the append-only file of this server is the caller's to see to, as nobody else of the process has; until it is put back.
    pub fn sees_to(&self, run_id: &str) -> bool {
        self.seen_to().insert(run_id.to_owned())
    }

    pub fn puts_back(&self, run_id: &str) {
        self.seen_to().remove(run_id);
    }

    fn seen_to(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.seen_to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn kind(&self) -> Kind {
        self.state().kind.clone()
    }

    /// However old it is.
    pub fn last_map(&self) -> Option<Arc<SlotMap>> {
        self.state().map.clone()
    }

    /// The first who connects has found out.
    pub fn learn(&self, is_cluster: bool) {
        let mut state = self.state();
        if let Kind::Unknown = state.kind {
            state.kind = if is_cluster { Kind::Cluster } else { Kind::OneServer };
        }
    }

    /// Something has failed: the map may be wrong. One server that says that a slot has moved has become a Cluster's.
    pub fn doubt(&self, has_moved: bool) {
        let mut state = self.state();
        state.is_doubted = true;
        if has_moved && state.kind == Kind::OneServer {
            state.kind = Kind::Unknown;
        }
    }

    /// This node does not answer: perhaps it was replaced since the others were asked.
    fn doubt_silent(&self, node: &Node) {
        let mut state = self.state();
        let is_old = state.asked.is_none_or(|asked| clock::now().saturating_duration_since(asked) >= ASK_EVERY);
        state.is_doubted |= is_old;
        state.silent = Some(node.clone());
    }

    /// What is known, if it is worth something.
    fn trusted(&self) -> Option<Arc<SlotMap>> {
        let state = self.state();
        let age = clock::now().saturating_duration_since(state.asked?);
        // Too lately asked: whoever is told something wrong tries again.
        let is_fresh = age < if state.is_doubted { LOOK_PAUSE } else { MAP_AGE };
        state.map.clone().filter(|_| is_fresh)
    }

    /// Where the slots are. Those that wait while the Cluster is asked share the answer.
    pub async fn map(&self, redis: &Redis) -> Result<Arc<SlotMap>, StoreError> {
        if let Some(map) = self.trusted() {
            return Ok(map);
        }
        let _asking = self.asking.lock().await;
        if let Some(map) = self.trusted() {
            return Ok(map);
        }
        let looked = match self.kind() {
            Kind::Watched(master) => sentinel::find(redis, &self.seeds, &master).await,
            _ => self.look(redis).await,
        };
        let mut state = self.state();
        state.asked = Some(clock::now());
        match looked {
            Ok(map) => {
                let map = Arc::new(map);
                (state.map, state.is_doubted, state.silent) = (Some(map.clone()), false, None);
                self.changed.send_replace(());
                Ok(map)
            }
            // Nobody tells better.
            Err(error) => state.map.clone().ok_or(error),
        }
    }

    /// Asks one node after the other until one answers.
    async fn look(&self, redis: &Redis) -> Result<SlotMap, StoreError> {
        let mut failed = StoreError::away("find the nodes of the Redis Cluster", "none was named");
        for node in self.to_ask() {
            let asked = timeout(LOOK_TIMEOUT, ask(redis, node.as_ref())).await;
            match asked.unwrap_or_else(|_| Err(StoreError::late("ask a node where the slots are"))) {
                Ok(map) => return Ok(map),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Every node, beginning with another one each time. None is that of the URL, which may be no host.
    fn to_ask(&self) -> Vec<Option<Node>> {
        let mut state = self.state();
        let known = state.map.as_ref().map(|map| map.nodes.clone()).unwrap_or_default();
        let mut nodes: Vec<Option<Node>> = known.into_iter().map(Some).collect();
        nodes.extend(self.seeds.iter().cloned().map(Some).filter(|seed| !nodes.contains(seed)).collect::<Vec<_>>());
        if nodes.is_empty() {
            nodes.push(None);
        }
        let turn = state.turn % nodes.len();
        nodes.rotate_left(turn);
        state.turn = state.turn.wrapping_add(1);
        nodes.sort_by_key(|node| node.is_some() && *node == state.silent);
        nodes
    }
}

async fn ask(redis: &Redis, node: Option<&Node>) -> Result<SlotMap, StoreError> {
    let mut wire = redis.open(node, None, config(Purpose::Other)).await?;
    let answer: Value = wire.ask("ask where the slots are", redis::cmd("CLUSTER").arg("SLOTS")).await?;
    Ok(SlotMap::read(&answer, node))
}

/// Whether it is a node of a Cluster.
pub(super) async fn is_of_cluster(wire: &mut Wire) -> Result<bool, StoreError> {
    let subject = "ask whether Redis is a Cluster";
    match wire.ask::<String>(subject, redis::cmd("INFO").arg("cluster")).await {
        Ok(info) => Ok(info.lines().any(|line| line.trim_end() == "cluster_enabled:1")),
        Err(error @ StoreError::Unavailable { .. }) => Err(error),
        // Whoever may not ask for that, as a producer, may ask this, which only a Cluster answers.
        Err(_) => match wire.ask::<Value>(subject, redis::cmd("CLUSTER").arg("SLOTS")).await {
            Ok(_) => Ok(true),
            Err(error @ StoreError::Unavailable { .. }) => Err(error),
            Err(_) => Ok(false),
        },
    }
}

/// A node that somebody is connected to, because it serves what they want.
pub(super) struct Server {
    redis: Arc<Redis>,
    pub node: Node,
    /// Its answers come soon, or never. Those of one that only waits may take as long as they like.
    is_prompt: bool,
}

/// What was waited for will not come: another node serves the slot by now.
pub(super) struct Replaced {
    /// It serves nothing any more.
    pub wholly: bool,
}

impl Server {
    pub fn new(redis: Arc<Redis>, node: Node, is_prompt: bool) -> Self {
        Self { redis, node, is_prompt }
    }

    /// Another one, for who waits in the same way.
    pub fn like(&self, redis: &Arc<Redis>, node: Node) -> Self {
        Self { redis: redis.clone(), node, is_prompt: self.is_prompt }
    }

    /// Waits for an answer as long as its connection does, unless another node has the slot by then: then who waits may go there.
    pub async fn answers<T>(&self, slot: Slot, answer: impl Future<Output = T>) -> Result<T, Replaced> {
        let mut answer = pin!(answer);
        if self.is_prompt
            && let Ok(answer) = timeout(SILENT_AFTER, &mut answer).await
        {
            return Ok(answer);
        }
        tokio::select! {
            biased;
            answer = &mut answer => Ok(answer),
            replaced = self.is_replaced(slot) => Err(replaced),
            replaced = self.asks_whether_replaced(slot), if self.is_prompt => Err(replaced),
        }
    }

    /// Returns once it is known, whoever has found out.
    pub async fn is_replaced(&self, slot: Slot) -> Replaced {
        let mut changed = self.redis.topology().changed.subscribe();
        loop {
            if let Some(replaced) = self.replaced_in(self.redis.topology().last_map().as_deref(), slot) {
                return replaced;
            }
            // The sender is there as long as this.
            let _ = changed.changed().await;
        }
    }

    async fn asks_whether_replaced(&self, slot: Slot) -> Replaced {
        loop {
            self.redis.topology().doubt_silent(&self.node);
            let map = self.redis.topology().map(&self.redis).await.ok();
            if let Some(replaced) = self.replaced_in(map.as_deref(), slot) {
                return replaced;
            }
            sleep(ASK_EVERY).await;
        }
    }

    /// A slot that nobody serves has not gone anywhere.
    fn replaced_in(&self, map: Option<&SlotMap>, slot: Slot) -> Option<Replaced> {
        let map = map?;
        let is_elsewhere = map.node(slot).is_some_and(|node| *node != self.node);
        is_elsewhere.then(|| Replaced { wholly: !map.has_master(&self.node) })
    }
}

/// A connection's ways to the nodes of a Cluster besides its own node, each made when it is first wanted, and anew after it failed.
/// Its own has no second life: what its user knows of it, such as that a settlement is kept, was true of that node.
pub(super) struct Others {
    redis: Arc<Redis>,
    own: Node,
    config: AsyncConnectionConfig,
    ways: Mutex<HashMap<Node, Arc<tokio::sync::Mutex<Way>>>>,
}

#[derive(Default)]
struct Way {
    wire: Option<Wire>,
    used: Option<Instant>,
    failed: Option<(Instant, StoreError)>,
}

impl Others {
    pub fn new(redis: Arc<Redis>, own: Node, config: AsyncConnectionConfig) -> Self {
        Self { redis, own, config, ways: Mutex::default() }
    }

    pub fn redis(&self) -> &Arc<Redis> {
        &self.redis
    }

    /// The node that serves the slot; `None` if it is one's own. For one's home it never becomes another: that node says itself
    /// that it has lost the slot. Those who share a connection have homes of their own.
    pub async fn node(&self, slot: Slot, home: Slot) -> Result<Option<Node>, StoreError> {
        if slot == home {
            return Ok(None);
        }
        let node = self.redis.node_of(slot).await?;
        Ok((node != self.own).then_some(node))
    }

    pub async fn wire(&self, node: &Node) -> Result<Wire, StoreError> {
        let way = self.ways().entry(node.clone()).or_default().clone();
        let mut way = way.lock().await;
        let now = clock::now();
        let is_fresh = way.used.replace(now).is_some_and(|used| now < used + PROVEN_FOR);
        if let Some(wire) = &mut way.wire {
            if is_fresh || answers(wire).await {
                return Ok(wire.clone());
            }
            way.wire = None;
        }
        if let Some((at, error)) = &way.failed
            && clock::now() < *at + NODE_PAUSE
        {
            return Err(error.clone());
        }
        match self.redis.open(Some(node), None, self.config.clone()).await {
            Ok(wire) => {
                (way.wire, way.failed) = (Some(wire.clone()), None);
                Ok(wire)
            }
            Err(error) => {
                way.failed = Some((clock::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// The way to this node has failed.
    pub fn forget(&self, node: &Node) {
        self.ways().remove(node);
    }

    fn ways(&self) -> MutexGuard<'_, HashMap<Node, Arc<tokio::sync::Mutex<Way>>>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Redis {
    /// The node of a Cluster that serves this slot.
    pub(super) async fn node_of(&self, slot: Slot) -> Result<Node, StoreError> {
        let map = self.topology().map(self).await?;
        map.node(slot).cloned().ok_or_else(|| {
            self.topology().doubt(false);
            let subject = format!("reach slot {} of the Redis Cluster", slot.number());
            StoreError::Unavailable { subject, cause: "no node serves it".to_owned(), remedy: UNCOVERED }
        })
    }
}

/// The slot of a command's first key; all of a command's keys are in one. None for a command without keys.
pub(super) fn slot_of(command: &Cmd) -> Option<Slot> {
    let mut words = command.args_iter().map(|word| match word {
        redis::Arg::Simple(word) => word,
        _ => &[],
    });
    let key = match words.next()? {
        b"INFO" | b"TIME" | b"SCRIPT" | b"CLIENT" | b"CONFIG" | b"BGREWRITEAOF" | b"WAIT" | b"MULTI" => None,
        b"EVALSHA" | b"EVALSHA_RO" => match words.nth(1)? {
            b"0" => None,
            _ => words.next(),
        },
        b"XREAD" => words.skip_while(|word| *word != b"STREAMS").nth(1),
        b"XINFO" | b"XGROUP" | b"MEMORY" => words.nth(1),
        _ => words.next(),
    };
    key.map(Slot::of_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn place(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), text("an id"), Value::Array(Vec::new())])
    }

    fn row(first: i64, last: i64, places: Vec<Value>) -> Value {
        Value::Array([vec![Value::Int(first), Value::Int(last)], places].concat())
    }

    fn asked() -> Node {
        Node { host: "asked".to_owned(), port: 1 }
    }

    fn map(rows: Vec<Value>) -> SlotMap {
        SlotMap::read(&Value::Array(rows), Some(&asked()))
    }

    fn serves(map: &SlotMap, slot: u16) -> Option<String> {
        map.node(Slot::new(slot).unwrap()).map(Node::to_string)
    }

    #[test]
    fn each_slot_has_the_node_that_the_cluster_says() {
        let map = map(vec![
            row(5461, 16383, vec![place(text("::1"), 7001)]),
            row(0, 5460, vec![place(text("10.0.0.1"), 7000), place(text("10.0.0.4"), 7003)]),
        ]);
        for (slot, node) in [(0, "10.0.0.1:7000"), (5460, "10.0.0.1:7000"), (5461, "[::1]:7001"), (16383, "[::1]:7001")]
        {
            assert_eq!(serves(&map, slot).as_deref(), Some(node), "{slot}");
        }
        assert_eq!(map.nodes.len(), 3);
    }

    #[test]
    fn a_node_that_does_not_know_its_name_has_the_one_it_was_asked_by() {
        for host in [Value::Nil, text("")] {
            assert_eq!(serves(&map(vec![row(0, 16383, vec![place(host, 7)])]), 9).as_deref(), Some("asked:7"));
        }
        let rows = Value::Array(vec![row(0, 1, vec![place(Value::Nil, 7)])]);
        assert_eq!(SlotMap::read(&rows, None).node(Slot::new(0).unwrap()), None);
    }

    #[test]
    fn what_is_not_understood_serves_nothing_and_breaks_nothing() {
        let good = || place(text("good"), 7);
        for rows in [
            vec![],
            vec![Value::Nil],
            vec![Value::Array(vec![])],
            vec![Value::Array(vec![Value::Int(0)])],
            vec![row(0, 16383, vec![])],
            vec![row(0, 16383, vec![Value::Nil])],
            vec![row(0, 16383, vec![Value::Array(vec![])])],
            vec![row(0, 16383, vec![place(text("?"), 7), good()])],
            vec![row(0, 16383, vec![place(text("x"), 0)])],
            vec![row(0, 16383, vec![place(text("x"), 65536)])],
            vec![row(0, 16383, vec![place(text("x"), -1)])],
            vec![row(0, 16383, vec![place(Value::Int(3), 7)])],
            vec![row(0, 16383, vec![place(Value::BulkString(vec![0xff]), 7)])],
            vec![row(-1, 5, vec![good()])],
            vec![row(0, 16384, vec![good()])],
            vec![row(6, 5, vec![good()])],
            vec![row(i64::MIN, i64::MAX, vec![good()])],
        ] {
            assert_eq!(serves(&map(rows.clone()), 5), None, "{rows:?}");
        }
        assert_eq!(SlotMap::read(&Value::Okay, Some(&asked())).nodes, []);
    }

    #[test]
    fn a_hole_is_a_hole_and_of_two_answers_for_a_slot_one_is_taken() {
        let one = |name: &str, first, last| row(first, last, vec![place(text(name), 1)]);
        let map = map(vec![one("a", 0, 99), one("b", 200, 299), one("c", 250, 400), one("d", 500, 500)]);
        let expected = [(0, "a"), (99, "a"), (200, "b"), (299, "b"), (500, "d")]
            .map(|(slot, name)| (slot, Some(name.to_owned() + ":1")));
        let holes = [100, 199, 300, 400, 499, 501, 16383].map(|slot| (slot, None));
        for (slot, node) in expected.into_iter().chain(holes) {
            assert_eq!(serves(&map, slot), node, "{slot}");
        }
    }

    #[test]
    fn a_command_goes_where_its_first_key_is() {
        let of = |words: &[&str]| slot_of(redis::cmd(words[0]).arg(&words[1..]));
        let slot = Some(Slot::of_key(b"k"));
        for words in [
            &["GET", "k"][..],
            &["MGET", "k", "{k}:2"],
            &["XADD", "k", "*", "event", "{}"],
            &["XREAD", "COUNT", "5", "STREAMS", "k", "0"],
            &["XINFO", "STREAM", "k"],
            &["MEMORY", "USAGE", "k"],
            &["EVALSHA", "sha", "2", "k", "{k}:2", "an argument"],
            &["EVALSHA_RO", "sha", "1", "k"],
        ] {
            assert_eq!(of(words), slot, "{words:?}");
        }
        for words in [
            &["TIME"][..],
            &["INFO", "memory"],
            &["SCRIPT", "LOAD", "k"],
            &["EVALSHA", "sha", "0", "k"],
            &["WAIT", "1", "1000"],
        ] {
            assert_eq!(of(words), None, "{words:?}");
        }
    }

    #[test]
    fn another_node_is_asked_each_time() {
        let topology = Topology::new(vec![asked()], Kind::Cluster);
        assert_eq!(topology.to_ask(), [Some(asked())]);
        let node = |host: &str| Node { host: host.to_owned(), port: 1 };
        let known = map(vec![row(0, 16383, vec![place(text("a"), 1), place(text("b"), 1)])]);
        topology.state().map = Some(Arc::new(known));
        topology.state().turn = 0;
        let firsts: Vec<_> = (0..4).map(|_| topology.to_ask().swap_remove(0).unwrap()).collect();
        assert_eq!(firsts, [node("a"), node("b"), asked(), node("a")]);
        assert_eq!(topology.to_ask().len(), 3);
        assert_eq!(Topology::new(Vec::new(), Kind::Unknown).to_ask(), [None]);
    }

    #[test]
    fn a_silent_node_is_asked_last_and_all_who_wait_for_it_ask_once() {
        let topology = Topology::new(vec![asked()], Kind::Cluster);
        let node = |host: &str| Node { host: host.to_owned(), port: 1 };
        let known = map(vec![row(0, 16383, vec![place(text("a"), 1), place(text("b"), 1)])]);
        topology.state().map = Some(Arc::new(known));
        topology.state().asked = Some(clock::now());
        topology.doubt_silent(&node("a"));
        assert!(topology.trusted().is_some(), "the others were asked just now");
        for _ in 0..4 {
            assert_eq!(topology.to_ask().pop().unwrap(), Some(node("a")));
        }
        topology.state().asked = clock::now().checked_sub(ASK_EVERY);
        assert!(topology.trusted().is_some(), "nobody has asked for it");
        topology.doubt_silent(&node("a"));
        assert!(topology.trusted().is_none());
    }

    fn knowing(rows: Vec<Value>) -> (Arc<Redis>, Server) {
        let redis = Arc::new(Redis::new("redis+cluster://127.0.0.1:1").unwrap());
        let mut state = redis.topology().state();
        (state.map, state.asked) = (Some(Arc::new(map(rows))), Some(clock::now()));
        drop(state);
        let server = Server::new(redis.clone(), Node { host: "a".to_owned(), port: 1 }, false);
        (redis, server)
    }

    /// Whoever waits at a node hears that others have found another in its place; a slow node is waited for.
    #[tokio::test]
    async fn a_wait_ends_with_the_answer_or_as_another_node_has_the_slot() {
        let slot = Slot::new(9).unwrap();
        let rows = |first: &str, second: &str| {
            vec![row(0, 99, vec![place(text(first), 1)]), row(100, 16383, vec![place(text(second), 1)])]
        };
        let (redis, server) = knowing(rows("a", "a"));
        let (answer, answered) = tokio::sync::oneshot::channel();
        let waiting = async { server.answers(slot, answered).await.is_ok_and(|answer| answer == Ok(7)) };
        let (is_answered, ()) = tokio::join!(waiting, async {
            // The same again, and a hole, tell nothing.
            for rows in [rows("a", "b"), vec![row(100, 16383, vec![place(text("b"), 1)])]] {
                redis.topology().state().map = Some(Arc::new(map(rows)));
                redis.topology().changed.send_replace(());
                tokio::task::yield_now().await;
            }
            answer.send(7).unwrap();
        });
        assert!(is_answered);
        for (now, wholly) in [(rows("b", "a"), false), (rows("b", "c"), true)] {
            let (redis, server) = knowing(rows("a", "a"));
            let (replaced, ()) = tokio::join!(server.answers(slot, std::future::pending::<()>()), async {
                tokio::task::yield_now().await;
                redis.topology().state().map = Some(Arc::new(map(now)));
                redis.topology().changed.send_replace(());
            });
            assert_eq!(replaced.err().map(|replaced| replaced.wholly), Some(wholly));
        }
    }

    #[test]
    fn a_map_is_believed_until_it_is_old_or_something_fails() {
        let topology = Topology::new(vec![asked()], Kind::Cluster);
        topology.state().map = Some(Arc::new(map(Vec::new())));
        let is_trusted = |asked: Duration, is_doubted: bool| {
            let mut state = topology.state();
            (state.asked, state.is_doubted) = (clock::now().checked_sub(asked), is_doubted);
            drop(state);
            topology.trusted().is_some()
        };
        assert!(is_trusted(Duration::from_secs(1), false));
        topology.doubt(false);
        assert!(topology.trusted().is_none(), "nobody asks again after a failure");
        assert!(!is_trusted(MAP_AGE, false));
        assert!(is_trusted(Duration::ZERO, true), "a Cluster in trouble is asked without a pause");
    }

    #[test]
    fn one_server_that_speaks_of_another_is_asked_again_what_it_is() {
        let topology = Topology::new(Vec::new(), Kind::Unknown);
        topology.learn(false);
        topology.doubt(false);
        assert!(topology.kind() == Kind::OneServer);
        topology.doubt(true);
        assert!(topology.kind() == Kind::Unknown);
        topology.learn(true);
        assert!(topology.kind() == Kind::Cluster);
    }
}
