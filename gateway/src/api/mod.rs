//! The admin API under `/api/v1`. JSON in, JSON out; a deploy answers with one JSON object a line while it works.

mod activity;
mod logs;
mod trace;
mod views;

use crate::Shared;
use crate::client_body::{BodyFate, ClientBody};
use crate::respond;
use crate::router::Api;
use crate::service::{Answer, Context};
use bytes::Bytes;
use fnctl_core::deploy::DeployRequest;
use fnctl_core::ids::{AliasName, Digest, FunctionName, VersionNumber};
use fnctl_core::version::{Alias, Function};
use fnctl_core::{Body, ErrorKind, Failure};
use futures::StreamExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::Incoming;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Most bytes of a JSON body: a configuration, not an artifact.
const MAX_JSON: usize = 1 << 20;

type Outcome = Result<Response<Body>, Failure>;

pub(crate) async fn handle(
    shared: &Arc<Shared>,
    context: &Context,
    route: Api<'_>,
    request: Request<Incoming>,
) -> Answer {
    match dispatch(shared, route, request).await {
        Ok(response) => Answer::new("api", response),
        Err(failure) => {
            if failure.kind.fault() == fnctl_core::Fault::Platform {
                tracing::error!(request_id = %context.request_id, kind = failure.kind.code(), cause = failure.cause, "{}", failure.message);
            }
            Answer::failed("api", &failure, &context.request_id)
        }
    }
}

async fn dispatch(shared: &Arc<Shared>, route: Api<'_>, request: Request<Incoming>) -> Outcome {
    let method = request.method().clone();
    match (method, route) {
        (Method::GET, Api::Functions) => Ok(list(shared)),
        (Method::GET, Api::Function(name)) => get(shared, &name),
        (Method::DELETE, Api::Function(name)) => remove(shared, &name).await,
        (Method::GET, Api::Versions(name)) => versions(shared, &name),
        (Method::POST, Api::Versions(name)) => deploy(shared, name, request).await,
        (Method::GET, Api::Logs(name)) => logs::logs(shared, name, request.uri().query()).await,
        (Method::POST, Api::Rollback(name)) => rollback(shared, name, request).await,
        (Method::PUT, Api::Alias(name, alias)) => {
            let to: Alias = json_body(request).await?;
            set_alias(shared, &name, alias, Some(to)).await
        }
        (Method::DELETE, Api::Alias(name, alias)) => set_alias(shared, &name, alias, None).await,
        (Method::POST, Api::Artifacts) => upload(shared, request).await,
        (Method::HEAD | Method::GET, Api::Artifact(digest)) => has_artifact(shared, &digest),
        (Method::GET, Api::Activity) => Ok(activity(shared)),
        (Method::GET, Api::Trace) => Ok(exported(shared)),
        (Method::GET, Api::Inference) => Ok(respond::json(
            StatusCode::OK,
            &shared.backend.inference.status(),
        )),
        (Method::POST, Api::InferenceRestart) => restart(shared).await,
        (Method::GET, Api::Status) => Ok(respond::json(StatusCode::OK, &views::status(shared))),
        _ => Err(Failure::new(
            ErrorKind::MethodNotAllowed,
            "this path of the admin API has no such method; see docs/api.md",
        )),
    }
}

fn function(shared: &Shared, name: &FunctionName) -> Result<Arc<Function>, Failure> {
    shared
        .backend
        .functions
        .functions(Some(name))
        .into_iter()
        .next()
        .ok_or_else(|| {
            Failure::new(
                ErrorKind::NotFound,
                format!("there is no function '{name}'; see `fnctl ls`"),
            )
        })
}

fn list(shared: &Shared) -> Response<Body> {
    let functions = shared.backend.functions.functions(None);
    let views: Vec<_> = functions
        .iter()
        .map(|function| views::summary(shared, function))
        .collect();
    respond::json(StatusCode::OK, &views)
}

fn activity(shared: &Shared) -> Response<Body> {
    let deployed = shared.backend.functions.functions(None).len();
    let families = shared.backend.registry.gather();
    respond::json(StatusCode::OK, &activity::Activity::of(&families, deployed))
}

/// Replaces the inference hosts. To its end, whether the client waits or not: half of them replaced helps nobody.
async fn restart(shared: &Shared) -> Outcome {
    let inference = shared.backend.inference.clone();
    let replaced = tokio::spawn(async move { inference.replace_hosts().await })
        .await
        .map_err(Failure::internal)?
        .map_err(|error| {
            Failure::new(
                error.error_kind(),
                "not every inference host could be replaced; the platform's log says more",
            )
            .because(error)
        })?;
    Ok(respond::json(
        StatusCode::OK,
        &serde_json::json!({ "replaced": replaced }),
    ))
}

fn exported(shared: &Shared) -> Response<Body> {
    let text = trace::text(&shared.backend.recorder);
    let mut response = Response::new(fnctl_core::full(text));
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/csv"),
    );
    response
}

fn get(shared: &Shared, name: &FunctionName) -> Outcome {
    let function = function(shared, name)?;
    Ok(respond::json(
        StatusCode::OK,
        &views::details(shared, &function),
    ))
}

fn versions(shared: &Shared, name: &FunctionName) -> Outcome {
    let function = function(shared, name)?;
    Ok(respond::json(
        StatusCode::OK,
        &views::versions(shared, &function),
    ))
}

async fn remove(shared: &Shared, name: &FunctionName) -> Outcome {
    let function = function(shared, name)?;
    shared.backend.deployer.remove(name).await?;
    shared.rates.forget(name);
    shared.metrics.forget(name);
    if let Some(newest) = function.versions.keys().max() {
        shared.backend.logs.forget(name, *newest);
    }
    Ok(respond::json(
        StatusCode::OK,
        &serde_json::json!({ "removed": name }),
    ))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RollbackRequest {
    to: Option<VersionNumber>,
}

/// Runs to its end even if the client leaves, as a deploy does.
async fn rollback(shared: &Shared, name: FunctionName, request: Request<Incoming>) -> Outcome {
    let wanted: RollbackRequest = json_body(request).await?;
    let deployer = shared.backend.deployer.clone();
    let rollback = shared.tasks.spawn("rollback", async move {
        deployer
            .rollback(&name, wanted.to)
            .await
            .map(|version| (name, version))
    });
    let (name, version) = rollback
        .await
        .unwrap_or_else(|error| Err(Failure::internal(error)))?;
    Ok(respond::json(
        StatusCode::OK,
        &serde_json::json!({ "function": name, "version": version.number }),
    ))
}

async fn set_alias(
    shared: &Shared,
    name: &FunctionName,
    alias: &str,
    to: Option<Alias>,
) -> Outcome {
    let alias: AliasName = alias.parse().map_err(|error: fnctl_core::ids::IdError| {
        Failure::new(ErrorKind::BadRequest, error.to_string())
    })?;
    shared.backend.deployer.set_alias(name, &alias, to).await?;
    Ok(respond::json(
        StatusCode::OK,
        &serde_json::json!({ "function": name, "alias": alias, "to": to }),
    ))
}

async fn upload(shared: &Shared, request: Request<Incoming>) -> Outcome {
    let limit = shared.config.max_artifact.bytes();
    let body = ClientBody::new(
        request.into_body(),
        limit,
        shared.config.body_timeout.duration(),
        BodyFate::default(),
    );
    let (digest, size) = shared
        .backend
        .artifacts
        .put(body.boxed_unsync(), limit)
        .await?;
    Ok(respond::json(
        StatusCode::CREATED,
        &serde_json::json!({ "digest": digest, "size": size }),
    ))
}

fn has_artifact(shared: &Shared, digest: &Digest) -> Outcome {
    let (_, size) = shared.backend.artifacts.locate(digest).ok_or_else(|| {
        Failure::new(
            ErrorKind::NotFound,
            "this artifact is not in the store; upload it",
        )
    })?;
    Ok(respond::json(
        StatusCode::OK,
        &serde_json::json!({ "digest": digest, "size": size }),
    ))
}

/// Starts the deploy and streams its events. It runs to its end even if the client leaves.
async fn deploy(shared: &Arc<Shared>, name: FunctionName, request: Request<Incoming>) -> Outcome {
    let wanted: DeployRequest = json_body(request).await?;
    let (tx, rx) = mpsc::channel(32);
    let deployer = shared.backend.deployer.clone();
    shared.tasks.spawn(
        "deploy",
        async move { deployer.deploy(name, wanted, tx).await },
    );
    let lines = futures::stream::unfold(rx, |mut rx| async move {
        rx.recv().await.map(|event| (event, rx))
    })
    .map(|event| {
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        Ok(Frame::data(Bytes::from(line)))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    Ok(response)
}

/// Reads a JSON body. An empty one reads as `{}`.
async fn json_body<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Failure> {
    let collected = Limited::new(request.into_body(), MAX_JSON).collect();
    let body = tokio::time::timeout(std::time::Duration::from_secs(30), collected)
        .await
        .map_err(|_| {
            Failure::new(
                ErrorKind::SlowClient,
                "the request body did not arrive in time",
            )
        })?
        .map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                Failure::new(
                    ErrorKind::PayloadTooLarge,
                    "the JSON body is larger than 1 MiB",
                )
            } else {
                Failure::new(ErrorKind::BadRequest, "the request body ended early").because(error)
            }
        })?
        .to_bytes();
    let body = if body.is_empty() {
        Bytes::from_static(b"{}")
    } else {
        body
    };
    serde_json::from_slice(&body).map_err(|error| {
        Failure::new(
            ErrorKind::BadRequest,
            format!("the JSON body is not what this path takes: {error}"),
        )
    })
}
