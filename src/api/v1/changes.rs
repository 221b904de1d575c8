//! Endpoints: how they are made and changed. A merchant changes only their own, and lifts nothing that an operator has imposed.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::{IntoResponses, ToSchema};

use super::{
    Api,
    access::{Caller, Keeper},
    endpoints::Seen,
    events::Changed,
    request::{Body, CHANGED_MEANWHILE, ChangeRefusals, Reason, Refusals, named, of_rule, optional, reason, refused},
    settings::{CreateEndpoint, UpdateEndpoint},
};
use crate::{
    clock,
    config::{compact, parse_duration},
    facts::{
        audit::{Act, Begun},
        endpoint::{Endpoint, EndpointState, Mark, Scheme},
        id::{AccountId, EndpointId},
        signing::{Kind, MIN_SECRET_CHARS, Secret, SecretText, rotated},
        stamped::Stamped,
        token::Role,
    },
    http::problem::Problem,
    registry::rules::check_new_secrets,
    store::registry::{RegistryStore, confirming::Confirmation},
    view::endpoint::EndpointView,
};

/// What the answer to a change is where its replicas are late.
#[derive(IntoResponses)]
#[allow(dead_code)]
enum Stored {
    #[response(
        status = 202,
        description = "It is stored, and replicas have not confirmed it: a failover may take it back"
    )]
    Unconfirmed(Changed<EndpointView>),
}

/// Longest overlap of two secrets: a receiver that has not moved on by then never will.
const MAX_OVERLAP: Duration = Duration::from_secs(30 * 86_400);
const USUAL_OVERLAP: &str = "24h";

/// Endpoints that a merchant's tokens make for their account.
const MAX_OF_MERCHANT: usize = 50;

/// How often a change is tried anew because others change the same.
const MAX_ROUNDS: usize = 16;

/// Register an endpoint. A secret that is made for it is in the answer, and never again.
#[utoipa::path(
    post, path = "/v1/endpoints", tag = "Endpoints", request_body = CreateEndpoint,
    responses((status = 201, body = EndpointView), Stored, Refusals, ChangeRefusals)
)]
pub async fn create(State(api): State<Api>, Keeper(caller): Keeper, body: Body) -> Result<Response, Problem> {
    let request = body.read(&api.0.schemas.create)?;
    let account = caller.narrowed(optional::<AccountId>("account", request.account.as_ref())?)?;
    let account = account.ok_or_else(|| Problem::fault("account", "is missing: whose endpoint is it?"))?;
    let id = optional::<EndpointId>("id", request.id.as_ref())?.unwrap_or_else(fresh_id);
    if caller.role == Role::Merchant && request.id.is_some() {
        return Err(Problem::fault(
            "id",
            "is chosen by Herald: an id that was another's would lead to what is left of it",
        ));
    }
    let why = request.reason.as_deref().map_or_else(|| Ok("created".to_owned()), reason)?;
    let given = request.secret.clone().map(SecretText::new).transpose();
    let given = given.map_err(|error| Problem::fault("secret", error.to_string()))?;
    let is_given = given.is_some();
    let mark = caller.mark(&why);
    let first = given.unwrap_or_else(|| fresh_secret(Kind::Shared));
    let mut endpoint = Endpoint::new(id, account, request.url.clone(), first, mark.at_ms);
    request.apply(&mut endpoint)?;
    if !is_given && endpoint.usual_kind() != Kind::Shared {
        endpoint.secrets.clear();
    }
    let known = if is_given { endpoint.secrets.len() } else { 0 };
    while let Some(scheme) = endpoint.scheme_without_secret() {
        endpoint.secrets.push(Secret::new(fresh_secret(scheme.signs_with()), mark.at_ms));
    }
    // Of a key pair its receiver needs the public half, which is always shown.
    let mut made = endpoint.secrets[known..].iter().map(|secret| secret.value.clone());
    let made = made.find(|secret| secret.kind() == Kind::Shared);
    check_secret(&endpoint)?;
    api.check_with_url(&caller, &endpoint).await?;
    let begun = about(caller.begun(&api, Act::EndpointCreate, &why), &endpoint);
    let (created, confirmation) = if caller.role == Role::Merchant {
        api.create_for_merchant(begun, &endpoint, &mark).await?
    } else {
        let create = async |_: &mut _| api.change_registry(async |store| store.create(endpoint, &mark).await).await;
        api.0.audit.audited(begun, create).await?
    };
    let view = EndpointView::of(&created, made.as_ref(), caller.viewer(), clock::wall_ms());
    api.changed(StatusCode::CREATED, view, &confirmation).await
}

/// Change settings of an endpoint.
#[utoipa::path(
    patch, path = "/v1/endpoints/{endpoint}", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = UpdateEndpoint, responses((status = 200, body = EndpointView), Stored, Refusals, ChangeRefusals)
)]
pub async fn update(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    let request = body.read(&api.0.schemas.update)?;
    let why = reason(&request.reason)?;
    let before = api.endpoint(&caller, &named(&id)?).await?;
    let changed = |before: &Endpoint| {
        let mut after = before.clone();
        request.apply(&mut after)?;
        api.0.rules.check_settings(&after).map_err(|error| of_rule(&error, caller.viewer()))?;
        Ok(after)
    };
    let after = changed(&before)?;
    if after == before {
        return Ok(Json(caller.shown(&before)).into_response());
    }
    if after.url != before.url {
        api.check_with_url(&caller, &after).await?;
    }
    // Only the names of what changes: values may be secrets.
    let names = before.fields_that_differ(&after).join(", ");
    let begun = about(caller.begun(&api, Act::EndpointUpdate, &why), &before).target(names);
    let (updated, confirmation) = api.put(&caller, begun, after, &caller.mark(&why), changed).await?;
    api.changed(StatusCode::OK, caller.shown(&updated), &confirmation).await
}

/// Remove an endpoint. It takes no more events at once, and is gone when what was accepted before is delivered or a dead letter.
#[utoipa::path(
    delete, path = "/v1/endpoints/{endpoint}", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Reason, responses((status = 202, body = Changed<EndpointView>), Refusals, ChangeRefusals)
)]
pub async fn delete(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    let seen = api.seen(&caller, &named(&id)?).await?;
    let (view, confirmation) = match seen.lock {
        Some(_) => api.remove_locked(&caller, &seen, &body).await?,
        None => api.disable(&caller, &id, &body, Act::EndpointDelete, |endpoint| endpoint.leaves = true).await?,
    };
    api.changed(StatusCode::ACCEPTED, view, &confirmation).await
}

/// Take no events; what is unfinished becomes dead letters.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/disable", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Reason, responses((status = 200, body = EndpointView), Stored, Refusals, ChangeRefusals)
)]
pub async fn disable(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    let (view, confirmation) = api.disable(&caller, &id, &body, Act::EndpointDisable, |_| {}).await?;
    api.changed(StatusCode::OK, view, &confirmation).await
}

/// Let its deliveries wait in its backlog.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/pause", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Reason, responses((status = 200, body = EndpointView), Stored, Refusals, ChangeRefusals)
)]
pub async fn pause(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    api.switch(&caller, &id, &body, Act::EndpointPause).await
}

/// Let its backlog go out.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/resume", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Reason, responses((status = 200, body = EndpointView), Stored, Refusals, ChangeRefusals)
)]
pub async fn resume(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    api.switch(&caller, &id, &body, Act::EndpointResume).await
}

/// Take events again, after it was disabled.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/enable", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = Reason, responses((status = 200, body = EndpointView), Stored, Refusals, ChangeRefusals)
)]
pub async fn enable(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    api.switch(&caller, &id, &body, Act::EndpointEnable).await
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateSecret {
    /// How long the older secrets keep signing, `0s` to `30d`; `24h` where nothing is said.
    #[serde(default)]
    overlap: Option<String>,
    /// A fresh one where nothing is said, which is in the answer and never again.
    #[serde(default)]
    secret: Option<String>,
    /// What a fresh one is to sign: for ed25519 a key pair, else a secret that both sides have; what the endpoint has where
    /// nothing is said.
    #[serde(default)]
    scheme: Option<String>,
    #[schema(min_length = 1, max_length = 1024)]
    reason: String,
}

/// Make a new secret that signs at once; the older ones keep signing until the overlap is over.
#[utoipa::path(
    post, path = "/v1/endpoints/{endpoint}/rotate-secret", tag = "Endpoints", params(("endpoint" = String, Path)),
    request_body = RotateSecret, responses((status = 200, body = EndpointView), Stored, Refusals, ChangeRefusals)
)]
pub async fn rotate_secret(
    State(api): State<Api>,
    Keeper(caller): Keeper,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    let request = body.read(&api.0.schemas.rotate)?;
    let why = reason(&request.reason)?;
    let overlap = parse_duration(request.overlap.as_deref().unwrap_or(USUAL_OVERLAP));
    let overlap = overlap.ok().filter(|overlap| *overlap <= MAX_OVERLAP);
    let overlap = overlap.ok_or_else(|| Problem::fault("overlap", "is no time from 0s to 30d"))?;
    let before = api.endpoint(&caller, &named(&id)?).await?;
    let kind = match &request.scheme {
        Some(scheme) => scheme.parse::<Scheme>().map_err(|why| Problem::fault("scheme", why))?.signs_with(),
        None => before.usual_kind(),
    };
    let (secret, made) = match request.secret {
        Some(text) => (SecretText::new(text).map_err(|error| Problem::fault("secret", error.to_string()))?, None),
        None => {
            let made = fresh_secret(kind);
            (made.clone(), Some(made).filter(|_| kind == Kind::Shared))
        }
    };
    let mark = caller.mark(&why);
    let changed = |before: &Endpoint| {
        if before.secrets.iter().any(|known| known.value == secret) {
            return Err(Problem::fault("secret", "is one that the endpoint already has"));
        }
        let mut after = before.clone();
        after.secrets = rotated(after.secrets, Secret::new(secret.clone(), mark.at_ms), mark.at_ms, overlap);
        let judged = check_new_secrets(&after, Some(before)).and_then(|()| api.0.rules.check_settings(&after));
        judged.map_err(|error| of_rule(&error, caller.viewer()))?;
        Ok(after)
    };
    let after = changed(&before)?;
    let begun = about(caller.begun(&api, Act::EndpointRotateSecret, &why), &before);
    let begun = begun.filter(format_args!("--overlap {}", compact(overlap)));
    let (updated, confirmation) = api.put(&caller, begun, after, &mark, changed).await?;
    let view = EndpointView::of(&updated, made.as_ref(), caller.viewer(), clock::wall_ms());
    api.changed(StatusCode::OK, view, &confirmation).await
}

impl Api {
    /// Writes what `changed` has made of an endpoint. If somebody else was quicker it makes the same of what is there then, unless
    /// the caller has said which revision they mean.
    async fn put(
        &self,
        caller: &Caller,
        begun: Begun,
        mut after: Endpoint,
        mark: &Mark,
        changed: impl Fn(&Endpoint) -> Result<Endpoint, Problem>,
    ) -> Result<(Endpoint, Confirmation), Problem> {
        let write = async |_: &mut _| {
            for _ in 1..MAX_ROUNDS {
                let stale = match self.update(after.clone(), mark).await {
                    Err(problem) if problem.name == CHANGED_MEANWHILE => problem,
                    done => return done,
                };
                let before = self.endpoint(caller, &after.id).await?;
                after = changed(&before)?;
                if after.revision != before.revision {
                    return Err(stale);
                }
                if after == before {
                    return Ok((after, Confirmation::of_nothing()));
                }
            }
            self.update(after, mark).await
        };
        self.0.audit.audited(begun, write).await
    }

    async fn update(&self, endpoint: Endpoint, mark: &Mark) -> Result<(Endpoint, Confirmation), Problem> {
        self.change_registry(async |store| store.update(endpoint, mark).await).await
    }

    async fn switch(&self, caller: &Caller, id: &str, body: &Body, act: Act) -> Result<Response, Problem> {
        let why = reason(&body.read(&self.0.schemas.reason)?.reason)?;
        let (before, mark) = (self.endpoint(caller, &named(id)?).await?, caller.mark(&why));
        let changed = |before: &Endpoint| switched(caller, before, act, &mark);
        let after = changed(&before)?;
        if after == before {
            return Ok(Json(caller.shown(&before)).into_response());
        }
        let begun = about(caller.begun(self, act, &why), &before);
        let (updated, confirmation) = self.put(caller, begun, after, &mark, changed).await?;
        self.changed(StatusCode::OK, caller.shown(&updated), &confirmation).await
    }

    async fn disable(
        &self,
        caller: &Caller,
        id: &str,
        body: &Body,
        act: Act,
        and: impl Fn(&mut Endpoint),
    ) -> Result<(EndpointView, Confirmation), Problem> {
        let why = reason(&body.read(&self.0.schemas.reason)?.reason)?;
        let (before, mark) = (self.endpoint(caller, &named(id)?).await?, caller.mark(&why));
        // First: what is accepted from here on is not owed.
        let last = self.queries(async |queries| queries.last_entry_of(&before.account).await).await?;
        let changed = |before: &Endpoint| {
            // Its mark would stand in the place of the operator's, and then nobody knew who may lift it.
            caller.may_lift(before)?;
            let mut after = before.clone();
            if !matches!(after.status, EndpointState::Disabled(_)) {
                after.disable(mark.clone(), last);
            }
            and(&mut after);
            Ok(after)
        };
        let after = changed(&before)?;
        if after == before {
            return Ok((caller.shown(&before), Confirmation::of_nothing()));
        }
        let begun = about(caller.begun(self, act, &why), &before);
        let (updated, confirmation) = self.put(caller, begun, after, &mark, changed).await?;
        Ok((caller.shown(&updated), confirmation))
    }

    /// It cannot be written any more, so it is gone at once: what waits for it becomes dead letters.
    async fn remove_locked(
        &self,
        caller: &Caller,
        seen: &Seen,
        body: &Body,
    ) -> Result<(EndpointView, Confirmation), Problem> {
        let why = reason(&body.read(&self.0.schemas.reason)?.reason)?;
        caller.may_lift(&seen.endpoint)?;
        let begun = about(caller.begun(self, Act::EndpointDelete, &why), &seen.endpoint);
        let (id, mark) = (&seen.endpoint.id, caller.mark(&why));
        let remove = async |_: &mut _| self.change_registry(async |store| store.remove(id, None, &mark).await).await;
        let ((), confirmation) = self.0.audit.audited(begun, remove).await?;
        Ok((seen.view(caller.viewer(), clock::wall_ms()), confirmation))
    }

    /// Within what an account may have, also while others of it are made.
    async fn create_for_merchant(
        &self,
        begun: Begun,
        endpoint: &Endpoint,
        mark: &Mark,
    ) -> Result<(Endpoint, Confirmation), Problem> {
        // In one process they take turns, so that they need not be tried anew because of each other.
        let _turn = self.0.creating.lock().await;
        // What is refused at once leaves no entry in the audit log.
        self.last_with_room(&endpoint.account).await?;
        let create = async |_: &mut _| {
            for _ in 0..MAX_ROUNDS {
                let seen = self.last_with_room(&endpoint.account).await?;
                let create = async |store: &mut RegistryStore| store.create_at(seen, endpoint.clone(), mark).await;
                match self.change_registry(create).await {
                    Err(problem) if problem.name == CHANGED_MEANWHILE => {}
                    done => return done,
                }
            }
            Err(Problem::unavailable("Others change endpoints all the time; nothing was changed.", 1))
        };
        self.0.audit.audited(begun, create).await
    }

    /// The registry's last change, at which the account has room for one more endpoint.
    async fn last_with_room(&self, account: &AccountId) -> Result<Stamped, Problem> {
        // First: whatever is made from here on gives the registry another one.
        let position = self.with_registry(async |store| store.position().await).await?;
        let last = position.map_or(Stamped::default(), |(position, _)| position.last);
        let of_account = self.all_endpoints().await?.iter().filter(|one| one.account == *account).count();
        if of_account < MAX_OF_MERCHANT {
            return Ok(last);
        }
        Err(refused(format!("The account has {MAX_OF_MERCHANT} endpoints, and no more are allowed: delete one first.")))
    }

    async fn check_with_url(&self, caller: &Caller, endpoint: &Endpoint) -> Result<(), Problem> {
        let _place = self.0.lookups.take_for(caller).await?;
        self.0.rules.check(endpoint).await.map_err(|error| of_rule(&error, caller.viewer()))
    }
}

impl Caller {
    fn shown(&self, endpoint: &Endpoint) -> EndpointView {
        EndpointView::of(endpoint, None, self.viewer(), clock::wall_ms())
    }

    /// What whoever runs Herald has imposed stands, whatever its merchant does.
    pub(super) fn may_lift(&self, endpoint: &Endpoint) -> Result<(), Problem> {
        if self.role != Role::Merchant || endpoint.stopped_by_operator().is_none() {
            return Ok(());
        }
        Err(refused(
            "Whoever runs Herald has stopped this endpoint: ask them. Until they let it go on, it stays as it is.",
        ))
    }
}

/// What a pause, a resumption or an enabling makes of it.
fn switched(caller: &Caller, before: &Endpoint, act: Act, mark: &Mark) -> Result<Endpoint, Problem> {
    let status = match (act, &before.status) {
        (Act::EndpointPause, EndpointState::Enabled) => EndpointState::Paused(mark.clone()),
        (Act::EndpointResume, EndpointState::Paused(_)) | (Act::EndpointEnable, EndpointState::Disabled(_)) => {
            caller.may_lift(before)?;
            EndpointState::Enabled
        }
        (Act::EndpointPause, EndpointState::Paused(_)) | (_, EndpointState::Enabled) => before.status.clone(),
        (Act::EndpointPause, _) => return Err(refused("The endpoint is disabled: there is nothing to pause.")),
        (Act::EndpointResume, _) => return Err(refused("The endpoint is disabled: enable it instead.")),
        _ => return Err(refused("The endpoint is paused: resume it instead.")),
    };
    Ok(Endpoint { status, ..before.clone() })
}

pub(super) fn about(begun: Begun, endpoint: &Endpoint) -> Begun {
    begun.account(&endpoint.account).endpoint(&endpoint.id)
}

fn check_secret(endpoint: &Endpoint) -> Result<(), Problem> {
    let why = || {
        format!("has less than {MIN_SECRET_CHARS} characters, or hardly different ones, so signatures can be forged")
    };
    check_new_secrets(endpoint, None).map_err(|_| Problem::fault("secret", why()))
}

fn fresh_secret(kind: Kind) -> SecretText {
    SecretText::of_kind(kind, rand::random())
}

fn fresh_id() -> EndpointId {
    EndpointId::new(&format!("ep_{}", hex::encode(rand::random::<[u8; 16]>()))).expect("hex has only what ids have")
}
