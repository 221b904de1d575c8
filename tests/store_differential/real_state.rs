//! Reads everything that a partition has in Redis into the form of the model, and checks on the way what that form
//! cannot express: that each index agrees with what it indexes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use herald::{
    facts::{
        envelope::{AccountSequence, Envelope},
        id::{DeliveryId, EndpointId, EntryId, OperationId},
        letter::LetterFacts,
        operation::{Counts, Exception, Operation},
        partition::Mode,
    },
    store::{
        keys::PartitionKeys,
        model::{
            Asking, Chains, Group, Inbox, Lease, Model, Quarantined, Stream,
            operations::{Claim, Claimed, Worked},
        },
        protocol::Asked,
    },
};
use redis::{FromRedisValue, Value, aio::MultiplexedConnection};

type Fields = Vec<(Bytes, Bytes)>;
type RawFields = Vec<(Vec<u8>, Vec<u8>)>;

pub struct Reader<'a> {
    pub connection: &'a mut MultiplexedConnection,
    pub keys: &'a PartitionKeys,
}

impl Reader<'_> {
    pub async fn read(&mut self) -> Model {
        let keys = self.keys.clone();
        let mut model = Model { stream: self.stream().await, ..Model::default() };
        let names: Vec<String> = self.ask(&["KEYS", &format!("{}*", glob(keys.prefix()))]).await;
        for name in names {
            let rest = name.strip_prefix(keys.prefix()).expect("it was asked for by this prefix");
            match rest.split_once(':').unwrap_or((rest, "")) {
                ("lease", _) => {
                    let value = self.ask(&["GET", &name]).await;
                    model.lease = Some(Lease { value, until_ms: 0 });
                }
                ("next", _) => {
                    let value = self.ask(&["GET", &name]).await;
                    model.next = Some(Lease { value, until_ms: 0 });
                }
                ("mode", _) => {
                    let text: String = self.ask(&["GET", &name]).await;
                    model.mode = Mode::parse(Some(&text)).expect("a mode");
                }
                ("gate", _) => model.gate = Some(self.ask(&["GET", &name]).await),
                ("routed", _) => model.routed = Some(parse(&self.ask::<String>(&["GET", &name]).await)),
                ("cursor", _) => model.cursor = Some(parse(&self.ask::<String>(&["GET", &name]).await)),
                ("registry-id", _) => model.registry = Some(self.ask(&["GET", &name]).await),
                ("delivery", id) => drop(model.records.insert(parse(id), self.bytes(&name).await)),
                ("due", _) => model.due = self.scored(&name).await,
                ("claimed", _) => model.claimed = self.scored(&name).await.into_keys().collect(),
                ("unfinished", _) => {
                    for (endpoint, count) in self.counts(&name).await {
                        chains(&mut model, &endpoint).unfinished = count;
                    }
                }
                ("singles", endpoint) => chains(&mut model, endpoint).singles = self.counts(&name).await,
                ("unreadable", _) => model.unreadable = self.scored(&name).await,
                ("bytes", _) => {
                    for (endpoint, bytes) in self.ask::<BTreeMap<String, i64>>(&["HGETALL", &name]).await {
                        chains(&mut model, &endpoint).bytes = bytes;
                    }
                }
                ("heads", endpoint) => {
                    let heads: BTreeMap<String, String> = self.ask(&["HGETALL", &name]).await;
                    chains(&mut model, endpoint).heads =
                        heads.into_iter().map(|(head, id)| (head, parse(&id))).collect();
                }
                ("held", endpoint) => {
                    let held = self.unscored(&name).await;
                    let split = |member: &String| {
                        let (intent, entry) = member.split_once(' ').expect("INTENT ENTRY");
                        (parse(intent), unpad(entry))
                    };
                    chains(&mut model, endpoint).held = held.iter().map(split).collect();
                }
                ("backlog", endpoint) => {
                    let backlog = self.unscored(&name).await;
                    chains(&mut model, endpoint).backlog = backlog.iter().map(|entry| unpad(entry)).collect();
                }
                ("dead-letter", _) => {}
                ("dead", "") => {
                    for (id, at) in self.scored(&name).await {
                        let letter = self.bytes(&keys.dead_letter(&id)).await;
                        model.dead.insert(id, (at, letter));
                    }
                }
                ("dead", endpoint) => {
                    let all: BTreeMap<DeliveryId, u64> = self.scored(&keys.dead()).await;
                    let of: BTreeMap<_, _> =
                        all.into_iter().filter(|(id, _)| id.endpoint.as_str() == endpoint).collect();
                    assert_eq!(self.scored(&name).await, of, "the dead letters of {endpoint} are indexed twice alike");
                }
                ("dead-facts", _) => {
                    for (id, line) in self.ask::<BTreeMap<String, String>>(&["HGETALL", &name]).await {
                        let (at, facts) = line.split_once(' ').expect("AT FACTS");
                        let facts = LetterFacts::parse(facts).unwrap_or_else(|| panic!("{facts:?} are no facts"));
                        model.dead_facts.insert(parse(&id), (parse(at), facts));
                    }
                }
                // Compared below with what they index.
                ("dead-kinds" | "dead-of" | "dead-account" | "dead-by" | "dead-names", _) => {}
                ("dead-mark", _) => model.dead_mark = Some(parse(&self.ask::<String>(&["GET", &name]).await)),
                ("quarantine", _) => model.quarantine = self.quarantine().await,
                ("quarantine-index", _) => {
                    let index: Vec<String> = self.ask(&["HVALS", &name]).await;
                    let count = index.iter().map(|all| all.split(' ').count()).sum::<usize>();
                    assert_eq!(count, self.quarantine().await.len());
                }
                ("inbox", _) => model.inbox = self.inbox(&name).await,
                ("answer", id) => {
                    let answers: Vec<String> = self.ask(&["LRANGE", &name, "0", "-1"]).await;
                    assert_eq!(answers.len(), 1, "one answer to {id}");
                    assert!(self.ask::<i64>(&["TTL", &name]).await > 0, "the answer to {id} goes by itself");
                    model.answers.insert(parse(id), answers.into_iter().next().unwrap());
                }
                ("attempts", _) => {
                    let lines = self.entries(&name).await;
                    let texts = lines.into_values().flatten();
                    let lines =
                        texts.flat_map(|(_, text)| text.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>());
                    model.log = lines.map(Bytes::from).collect();
                }
                ("stats", _) => {
                    let stats: (Option<u64>, Option<u64>) =
                        self.ask(&["HMGET", &name, "quarantine-dropped", "quarantine-bytes"]).await;
                    model.quarantine_dropped = stats.0.unwrap_or(0);
                    let held: u64 = self.quarantine().await.iter().map(|(_, quarantined)| quarantined.bytes()).sum();
                    assert_eq!(stats.1.unwrap_or(0), held, "the quarantine is weighed");
                }
                ("places", _) => {
                    let places = self.unscored(&name).await;
                    let split = |member: &String| {
                        let mut parts = member.split(' ');
                        let mut entry = || unpad(parts.next().expect("ENTRY PLACE"));
                        let (entry, place) = (entry(), entry());
                        (entry, (place, parts.next().map(|only| only.parse().expect("an endpoint"))))
                    };
                    model.places = places.iter().map(split).collect();
                }
                ("marks", _) => {
                    let marks: Vec<(String, f64)> = self.ask(&["ZRANGE", &name, "0", "-1", "WITHSCORES"]).await;
                    model.marks = marks.iter().map(|(entry, at)| (*at as u64, unpad(entry))).collect();
                }
                ("operation", id) => {
                    let worked = self.operation(&parse(id)).await;
                    model.operations.all.insert(parse(id), worked);
                }
                ("operation-endpoints" | "operation-ids" | "operation-results", id) => {
                    let operation = keys.operation(&parse(id));
                    assert!(self.ask::<bool>(&["EXISTS", &operation]).await, "{name} is left of no operation");
                }
                ("operation-claims", _) => {
                    for (delivery, claim) in self.ask::<BTreeMap<String, String>>(&["HGETALL", &name]).await {
                        model.operations.claims.insert(parse(&delivery), claim_of(&claim));
                    }
                }
                ("operations-planned", _) => model.operations.planned = self.times(&name).await,
                ("operations-open", _) => model.operations.open = self.times(&name).await,
                ("operations-ended", _) => model.operations.ended = self.times(&name).await,
                _ => panic!("a key that nobody knows: {name}"),
            }
        }
        let letters: Vec<String> = self.ask(&["KEYS", &format!("{}dead-letter:*", glob(keys.prefix()))]).await;
        assert_eq!(letters.len(), model.dead.len(), "every dead letter is indexed");
        self.compare_indexes(&model.dead_facts).await;
        model
    }

    /// Everything of an operation; only one that waits to be started goes by itself.
    async fn operation(&mut self, id: &OperationId) -> Worked {
        let keys = self.keys.clone();
        let mut fields: BTreeMap<String, String> = self.ask(&["HGETALL", &keys.operation(id)]).await;
        let mut text = |name: &str| fields.remove(name);
        let plan: herald::facts::operation::Plan = serde_json::from_str(&text("plan").expect("a plan")).unwrap();
        assert_eq!(text("kind").as_deref(), Some(plan.kind.name()));
        assert_eq!(text("count"), Some(plan.count.to_string()));
        let mut number = |name: &str| text(name).map_or(0, |number| parse(&number));
        let counts = Counts {
            open: number("open"),
            done: number("done"),
            refused: number("refused"),
            dead_again: number("dead_again"),
            overtaken: number("overtaken"),
        };
        let taken = number("taken");
        let rate = parse(&text("rate").expect("a rate"));
        let read = |text: String| serde_json::from_str(&text).unwrap();
        let operation = Operation {
            id: id.clone(),
            plan,
            state: parse(&text("state").expect("a state")),
            rate,
            counts,
            started: text("started").map(read),
            changed: text("changed").map(read),
            ended_ms: text("ended").map(|at| parse(&at)),
            waits: text("waits").map_or_else(Vec::new, |waits| serde_json::from_str(&waits).unwrap()),
            audit: text("audit").filter(|entry| !entry.is_empty()),
        };
        let is_laid = text("laid").is_some_and(|laid| laid == "1");
        assert!(fields.is_empty(), "fields that nobody knows: {fields:?}");
        let places: BTreeMap<String, String> = self.ask(&["HGETALL", &keys.operation_endpoints(id)]).await;
        let places = places.into_iter().map(|(endpoint, place)| (parse(&endpoint), place)).collect();
        let ids = self.unscored(&keys.operation_ids(id)).await;
        let is_planned = operation.state == herald::facts::operation::State::Planned;
        for (key, is_there) in [(keys.operation(id), true), (keys.operation_ids(id), !ids.is_empty())] {
            let ttl: i64 = self.ask(&["PTTL", &key]).await;
            assert!(!is_there || is_planned == (ttl > 0), "{key} goes in {ttl} ms, and is {}", operation.state.name());
        }
        let results = self.entries(&keys.operation_results(id)).await;
        let exception = |fields: &Fields| {
            let text = |name: &str| String::from_utf8(value(fields, name).to_vec()).expect("it is text");
            let (delivery, result, why) = (text("delivery"), text("result"), text("why"));
            Exception { delivery, result, why, at_ms: parse(&text("at")) }
        };
        Worked { operation, taken, is_laid, places, ids, results: results.values().map(exception).collect() }
    }

    async fn times(&mut self, key: &str) -> BTreeMap<OperationId, u64> {
        let members: Vec<(String, f64)> = self.ask(&["ZRANGE", key, "0", "-1", "WITHSCORES"]).await;
        members.into_iter().map(|(id, at)| (parse(&id), at as u64)).collect()
    }

    /// A letter is in the sets of its facts, with the time of its death, and nothing else is in any.
    async fn compare_indexes(&mut self, facts: &BTreeMap<DeliveryId, (u64, LetterFacts)>) {
        let keys = self.keys.clone();
        let (mut sets, mut kinds) = (BTreeMap::<String, BTreeMap<DeliveryId, u64>>::new(), BTreeSet::new());
        let mut names = BTreeSet::new();
        for (id, (at_ms, of)) in facts {
            let account = of.account.as_ref().map_or("", |account| account.as_str());
            let (endpoint, why) = (&id.endpoint, format!("{}:{}", of.reason_name(), of.cause));
            let kind = format!("{account}:{endpoint}:{why}");
            let of_account = format!("b:{account}:{why}");
            kinds.extend([
                format!("a:{kind}"),
                format!("e:{endpoint}:{account}:{why}"),
                of_account,
                format!("w:{why}"),
            ]);
            for key in [keys.dead_of_kind(&kind), keys.dead_account(account, &why), keys.dead_by(&why)] {
                sets.entry(key).or_default().insert(id.clone(), *at_ms);
            }
            names.extend(of.intent.as_ref().map(|intent| format!("i:{intent} {id}")));
            names.extend(of.event.as_ref().map(|event| format!("e:{event} {id}")));
        }
        assert_eq!(self.unscored(&keys.dead_kinds()).await, kinds, "the kinds are those that there are");
        assert_eq!(self.unscored(&keys.dead_names()).await, names, "intents and events lead to their letters");
        for pattern in [keys.dead_of_kind(""), format!("{}dead-account:", keys.prefix()), keys.dead_by("")] {
            let found: Vec<String> = self.ask(&["KEYS", &format!("{}*", glob(&pattern))]).await;
            for key in found {
                assert_eq!(Some(self.scored(&key).await), sets.remove(&key), "{key}");
            }
        }
        assert!(sets.is_empty(), "sets are missing: {sets:?}");
    }

    async fn ask<T: FromRedisValue>(&mut self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async(self.connection).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    async fn bytes(&mut self, key: &str) -> Bytes {
        self.ask::<Vec<u8>>(&["GET", key]).await.into()
    }

    async fn counts(&mut self, key: &str) -> BTreeMap<String, u64> {
        self.ask(&["HGETALL", key]).await
    }

    pub async fn scored<M>(&mut self, key: &str) -> BTreeMap<M, u64>
    where
        M: Ord + std::str::FromStr,
        M::Err: std::fmt::Debug,
    {
        let members: Vec<(String, f64)> = self.ask(&["ZRANGE", key, "0", "-1", "WITHSCORES"]).await;
        members.into_iter().map(|(id, at)| (parse(&id), at as u64)).collect()
    }

    async fn unscored(&mut self, key: &str) -> BTreeSet<String> {
        let members: Vec<(String, f64)> = self.ask(&["ZRANGE", key, "0", "-1", "WITHSCORES"]).await;
        assert!(members.iter().all(|(_, score)| *score == 0.0), "{key} is ordered by its members alone");
        members.into_iter().map(|(member, _)| member).collect()
    }

    pub async fn entries(&mut self, key: &str) -> BTreeMap<EntryId, Fields> {
        let entries: Vec<(String, RawFields)> = self.ask(&["XRANGE", key, "-", "+"]).await;
        let fields = |fields: RawFields| fields.into_iter().map(|(f, v)| (f.into(), v.into())).collect();
        entries.into_iter().map(|(id, all)| (parse(&id), fields(all))).collect()
    }

    async fn quarantine(&mut self) -> Vec<(EntryId, Quarantined)> {
        let mut found = Vec::new();
        let mut places: BTreeMap<EntryId, Vec<String>> = BTreeMap::new();
        for (at, fields) in self.entries(&self.keys.quarantine()).await {
            let text = |name: &str| String::from_utf8(value(&fields, name).to_vec()).expect("it is text");
            let entry: EntryId = parse(&text("entry"));
            places.entry(entry).or_default().push(at.to_string());
            let body = value(&fields, "body").clone();
            let account_sequence = AccountSequence::read(text("account-sequence").as_bytes());
            let envelope = Envelope { traceparent: text("traceparent").parse().ok(), account_sequence };
            let place = parse(&text("place"));
            let (cut, is_sound) = (text("cut") == "1", text("sound") == "1");
            let is_here = |(other, of): &(EntryId, Quarantined)| *other == entry && of.body == body;
            assert!(!found.iter().any(is_here), "{entry} is quarantined once");
            found.push((entry, Quarantined { body, cut, error: text("error"), envelope, place, is_sound }));
        }
        for (entry, all) in places {
            let index: Option<String> = self.ask(&["HGET", &self.keys.quarantine_index(), &entry.to_string()]).await;
            assert_eq!(index, Some(all.join(" ")), "the index finds {entry}");
        }
        found
    }

    async fn inbox(&mut self, key: &str) -> Inbox {
        let asked = |fields: &Fields| {
            let text = |name: &str| std::str::from_utf8(value(fields, name)).expect("it is text");
            match text("op") {
                "redeliver" => Asked::Redeliver(parse(text("id"))),
                "discard" => Asked::Discard(parse(text("id"))),
                "release" => Asked::Release(
                    parse(text("endpoint")),
                    parse(text("intent")),
                    fields.iter().any(|(name, _)| name == "head").then(|| parse(text("head"))),
                ),
                "requeue" => Asked::Requeue(parse(text("entry"))),
                "discard-quarantined" => Asked::DiscardQuarantined(parse(text("entry"))),
                "accept-registry" => Asked::AcceptRegistry(text("registry").to_owned()),
                "repartition" => Asked::Repartition(text("parts").parse().unwrap()),
                other => panic!("{other} is no request"),
            }
        };
        let requests = self.entries(key).await;
        let requests = requests.iter().map(|(id, fields)| {
            let operation = fields.iter().find(|(name, _)| name == "operation");
            let operation = operation.map(|(_, id)| parse(std::str::from_utf8(id).expect("it is text")));
            (*id, Asking { asked: asked(fields), mark: value(fields, "mark").clone(), operation })
        });
        Inbox { requests: requests.collect(), last: 0 }
    }

    async fn stream(&mut self) -> Stream {
        let key = self.keys.stream().to_owned();
        if !self.ask::<bool>(&["EXISTS", &key]).await {
            return Stream::default();
        }
        let info: BTreeMap<String, Value> = self.ask(&["XINFO", "STREAM", &key]).await;
        let last_generated = parse(&String::from_redis_value(info["last-generated-id"].clone()).unwrap());
        let mut groups = BTreeMap::new();
        for group in self.ask::<Vec<BTreeMap<String, Value>>>(&["XINFO", "GROUPS", &key]).await {
            let text = |name: &str| String::from_redis_value(group[name].clone()).unwrap();
            let name = text("name");
            let pending: Vec<(String, String, u64, u64)> =
                self.ask(&["XPENDING", &key, &name, "-", "+", "100000"]).await;
            let pending = pending.into_iter().map(|(id, owner, ..)| (parse(&id), owner)).collect();
            groups.insert(name, Group { last_delivered: parse(&text("last-delivered-id")), pending });
        }
        Stream { exists: true, entries: self.entries(&key).await, last_generated, groups }
    }
}

fn chains<'a>(model: &'a mut Model, endpoint: &str) -> &'a mut Chains {
    model.endpoints.entry(EndpointId::new(endpoint).expect("a key of an endpoint names it")).or_default()
}

fn value<'a>(fields: &'a Fields, name: &str) -> &'a Bytes {
    &fields.iter().find(|(field, _)| field == name).unwrap_or_else(|| panic!("no field {name}")).1
}

fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error:?}"))
}

/// `OPERATION DIED REQUEST`.
fn claim_of(text: &str) -> Claim {
    let parts: Vec<&str> = text.split(' ').collect();
    let [by, died, stands] = parts[..] else { panic!("{text:?} is no claim") };
    let stands = match stands.strip_prefix("granted@") {
        Some(since) => Claimed::Granted { since_ms: parse(since) },
        None if stands == "replayed" => Claimed::Replayed,
        None => Claimed::Asked(parse(stands)),
    };
    Claim { by: parse(by), died_ms: parse(died), stands }
}

fn unpad(padded: &str) -> EntryId {
    let id: EntryId = parse(padded);
    assert_eq!(id.padded(), padded);
    id
}

/// `KEYS` takes a pattern; our prefixes may contain these of the characters that are special there.
fn glob(prefix: &str) -> String {
    prefix.replace('[', "\\[").replace('*', "\\*").replace('?', "\\?")
}
