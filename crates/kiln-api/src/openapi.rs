//! The contract as an OpenAPI 3.1 document: shapes from the types, paths from the table below.
//!
//! `docs/openapi.json` is this, committed; a test holds it, and another holds that the daemon's
//! routes are these.

use serde_json::{Map, Value, json};
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(components(schemas(
    crate::NetworkRule,
    crate::RuleAction,
    crate::RuleProtocol,
    crate::RulePorts,
    crate::InitSystem,
    crate::Protection,
    crate::BasePreset,
    crate::PullBaseImage,
    crate::BaseImage,
    crate::BaseFile,
    crate::PulledBaseImage,
    crate::CreateNetwork,
    crate::WireGuardRequest,
    crate::NamedNetwork,
    crate::WireGuard,
    crate::NetworkMember,
    crate::ErrorBody,
    crate::ErrorReport,
    crate::Event,
    crate::CollectGarbage,
    crate::Leftover,
    crate::Kernel,
    crate::ExecRequest,
    crate::ExecLimits,
    crate::AttachRequest,
    crate::RunRequest,
    crate::TerminalSize,
    crate::ExitStatus,
    crate::Session,
    crate::FileInfo,
    crate::FileChange,
    crate::ChangeKind,
    crate::FileKind,
    crate::MakeDirectory,
    crate::MoveFile,
    crate::Version,
    crate::Acceleration,
    crate::HostInfo,
    crate::PullPolicy,
    crate::PullImage,
    crate::ImportImage,
    crate::TagImage,
    crate::PruneImages,
    crate::Image,
    crate::ImageConfig,
    crate::RemovedImage,
    crate::PrunedImages,
    crate::NetworkRequest,
    crate::NetworkMode,
    crate::NetworkPolicy,
    crate::Bandwidth,
    crate::PolicyMode,
    crate::Network,
    crate::NetworkProof,
    crate::ProofOutcome,
    crate::CreateSandbox,
    crate::MainCommand,
    crate::UpdateSandbox,
    crate::WaitFor,
    crate::StopSandbox,
    crate::EnginePreference,
    crate::EngineKind,
    crate::SandboxState,
    crate::Sandbox,
    crate::Timings,
    crate::Stats,
    crate::stream::ClientControl,
    crate::stream::ServerControl,
    crate::stream::ProgressStep,
    crate::stream::BytesDone,
    crate::CreateSnapshot,
    crate::AfterSnapshot,
    crate::Snapshot,
    crate::VolumeMount,
    crate::CreateVolume,
    crate::ResizeVolume,
    crate::ExportVolume,
    crate::Volume
)))]
struct Shapes;

/// One way to ask.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// `get`, `post`, `put`, `patch` or `delete`.
    pub method: &'static str,
    /// With its parts that vary in braces.
    pub path: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// Names in the query string.
    pub query: &'static [&'static str],
    /// Shape of the request's body, or of a stream's first message.
    pub request: Option<&'static str>,
    /// Status and shape of the answer.
    pub answer: (u16, Answer),
}

/// What an answer holds.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// Nothing.
    Empty,
    /// JSON of this shape.
    One(&'static str),
    /// A JSON array of this shape.
    Many(&'static str),
    /// Bytes of this type.
    Bytes(&'static str),
    /// A WebSocket, as told in [`crate::stream`].
    Stream,
}

use Answer::{Bytes, Empty, Many, One, Stream};

const fn get(path: &'static str, summary: &'static str, answer: Answer) -> Endpoint {
    Endpoint {
        method: "get",
        path,
        summary,
        query: &[],
        request: None,
        answer: (200, answer),
    }
}

const fn stream(path: &'static str, summary: &'static str, request: &'static str) -> Endpoint {
    Endpoint {
        request: Some(request),
        answer: (101, Stream),
        ..get(path, summary, Stream)
    }
}

const fn post(
    path: &'static str,
    summary: &'static str,
    request: Option<&'static str>,
    answer: (u16, Answer),
) -> Endpoint {
    Endpoint {
        method: "post",
        request,
        answer,
        ..get(path, summary, Empty)
    }
}

const fn asking(endpoint: Endpoint, query: &'static [&'static str]) -> Endpoint {
    Endpoint { query, ..endpoint }
}

const fn by(method: &'static str, endpoint: Endpoint) -> Endpoint {
    Endpoint { method, ..endpoint }
}

/// Every way to ask.
pub const ENDPOINTS: &[Endpoint] = &[
    get("/v1/version", "Who answers", One("Version")),
    get("/v1/info", "What the daemon can do here", One("HostInfo")),
    post(
        "/v1/shutdown",
        "End the daemon; machines run on",
        None,
        (202, Empty),
    ),
    asking(
        get(
            "/v1/events",
            "What happens, as server-sent events",
            Bytes("text/event-stream"),
        ),
        &["since", "follow"],
    ),
    get("/v1/metrics", "Figures for Prometheus", Bytes("text/plain")),
    get("/v1/kernels", "Guest kernels on the host", Many("Kernel")),
    post(
        "/v1/gc",
        "Remove what nobody owns",
        Some("CollectGarbage"),
        (200, Many("Leftover")),
    ),
    stream(
        "/v1/run",
        "Create, start, run a command, remove",
        "RunRequest",
    ),
    asking(
        get("/v1/sandboxes", "Sandboxes, newest first", Many("Sandbox")),
        &["filters"],
    ),
    post(
        "/v1/sandboxes",
        "Create a sandbox",
        Some("CreateSandbox"),
        (201, One("Sandbox")),
    ),
    get("/v1/sandboxes/{key}", "One sandbox", One("Sandbox")),
    by(
        "patch",
        post(
            "/v1/sandboxes/{key}",
            "Change what was asked of it",
            Some("UpdateSandbox"),
            (200, One("Sandbox")),
        ),
    ),
    asking(
        by(
            "delete",
            post("/v1/sandboxes/{key}", "Remove it", None, (204, Empty)),
        ),
        &["force"],
    ),
    post(
        "/v1/sandboxes/{key}/start",
        "Start it",
        None,
        (200, One("Sandbox")),
    ),
    post(
        "/v1/sandboxes/{key}/stop",
        "Stop it",
        Some("StopSandbox"),
        (200, One("Sandbox")),
    ),
    post(
        "/v1/sandboxes/{key}/restart",
        "Stop and start it",
        Some("StopSandbox"),
        (200, One("Sandbox")),
    ),
    post(
        "/v1/sandboxes/{key}/pause",
        "Halt it",
        None,
        (200, One("Sandbox")),
    ),
    post(
        "/v1/sandboxes/{key}/resume",
        "Let it go on",
        None,
        (200, One("Sandbox")),
    ),
    asking(
        get(
            "/v1/sandboxes/{key}/wait",
            "Wait until it has come to a state",
            One("Sandbox"),
        ),
        &["for"],
    ),
    asking(
        get(
            "/v1/sandboxes/{key}/logs",
            "The guest's console",
            Bytes("application/octet-stream"),
        ),
        &["follow", "tail"],
    ),
    get("/v1/sandboxes/{key}/network", "Its network", One("Network")),
    by(
        "put",
        post(
            "/v1/sandboxes/{key}/network",
            "Replace its policy",
            Some("NetworkPolicy"),
            (200, One("Network")),
        ),
    ),
    post(
        "/v1/sandboxes/{key}/network/verify",
        "Prove its policy",
        None,
        (200, Many("NetworkProof")),
    ),
    get("/v1/sandboxes/{key}/stats", "What it uses", One("Stats")),
    get(
        "/v1/sandboxes/{key}/sessions",
        "Commands that run in it",
        Many("Session"),
    ),
    by(
        "delete",
        post(
            "/v1/sandboxes/{key}/sessions/{session}",
            "End a command with its processes",
            None,
            (204, Empty),
        ),
    ),
    stream("/v1/sandboxes/{key}/exec", "Run a command", "ExecRequest"),
    stream(
        "/v1/sandboxes/{key}/sessions/{session}/attach",
        "Go back to a command",
        "AttachRequest",
    ),
    asking(
        get(
            "/v1/sandboxes/{key}/files",
            "What a path names",
            One("FileInfo"),
        ),
        &["path", "follow"],
    ),
    asking(
        by(
            "delete",
            post(
                "/v1/sandboxes/{key}/files",
                "Remove a file",
                None,
                (204, Empty),
            ),
        ),
        &["path", "recursive"],
    ),
    asking(
        get(
            "/v1/sandboxes/{key}/files/list",
            "List a directory",
            Many("FileInfo"),
        ),
        &["path"],
    ),
    asking(
        get(
            "/v1/sandboxes/{key}/files/watch",
            "What changes, as server-sent events, each a FileChange",
            Bytes("text/event-stream"),
        ),
        &["path", "recursive"],
    ),
    post(
        "/v1/sandboxes/{key}/files/mkdir",
        "Make a directory",
        Some("MakeDirectory"),
        (204, Empty),
    ),
    post(
        "/v1/sandboxes/{key}/files/move",
        "Move a file",
        Some("MoveFile"),
        (204, Empty),
    ),
    asking(
        get(
            "/v1/sandboxes/{key}/tree",
            "Read a tree",
            Bytes(crate::TREE_TYPE),
        ),
        &["path", "follow"],
    ),
    asking(
        by(
            "put",
            post(
                "/v1/sandboxes/{key}/tree",
                "Write a tree",
                None,
                (204, Empty),
            ),
        ),
        &["path", "user", "keep_owner"],
    ),
    asking(get("/v1/images", "Images", Many("Image")), &["all"]),
    get("/v1/images/{image}", "One image", One("Image")),
    asking(
        by(
            "delete",
            post(
                "/v1/images/{image}",
                "Remove it",
                None,
                (200, One("RemovedImage")),
            ),
        ),
        &["force"],
    ),
    post(
        "/v1/images/{image}/tag",
        "Give it another name",
        Some("TagImage"),
        (200, One("Image")),
    ),
    get(
        "/v1/images/{image}/export",
        "Its root filesystem",
        Bytes("application/x-tar"),
    ),
    get(
        "/v1/images/{image}/save",
        "It as an OCI archive",
        Bytes("application/x-tar"),
    ),
    post(
        "/v1/prune",
        "Remove images",
        Some("PruneImages"),
        (200, One("PrunedImages")),
    ),
    stream("/v1/pull", "Pull an image", "PullImage"),
    stream("/v1/import", "Import an image", "ImportImage"),
    post(
        "/v1/sandboxes/{key}/snapshots",
        "Make a snapshot of it",
        Some("CreateSnapshot"),
        (201, One("Snapshot")),
    ),
    get("/v1/snapshots", "Snapshots, newest first", Many("Snapshot")),
    get("/v1/snapshots/{snapshot}", "One snapshot", One("Snapshot")),
    by(
        "delete",
        post("/v1/snapshots/{snapshot}", "Remove it", None, (204, Empty)),
    ),
    get("/v1/volumes", "Volumes", Many("Volume")),
    post(
        "/v1/volumes",
        "Make a volume",
        Some("CreateVolume"),
        (201, One("Volume")),
    ),
    get("/v1/volumes/{name}", "One volume", One("Volume")),
    by(
        "delete",
        post("/v1/volumes/{name}", "Remove it", None, (204, Empty)),
    ),
    post(
        "/v1/volumes/{name}/resize",
        "Grow it",
        Some("ResizeVolume"),
        (200, One("Volume")),
    ),
    post(
        "/v1/volumes/{name}/export",
        "Copy it to a file",
        Some("ExportVolume"),
        (204, Empty),
    ),
    get(
        "/v1/sandboxes/{key}/ports/{port}",
        "A TCP port of the guest, as an upgraded connection",
        Bytes("application/octet-stream"),
    ),
    get("/v1/base-images", "Base images", Many("BaseImage")),
    stream(
        "/v1/base-images/pull",
        "Have a base image here",
        "PullBaseImage",
    ),
    get(
        "/v1/networks",
        "Networks that sandboxes share",
        Many("NamedNetwork"),
    ),
    post(
        "/v1/networks",
        "Make a network",
        Some("CreateNetwork"),
        (201, One("NamedNetwork")),
    ),
    get("/v1/networks/{name}", "One network", One("NamedNetwork")),
    by(
        "put",
        post(
            "/v1/networks/{name}",
            "Replace its policy",
            Some("NetworkPolicy"),
            (200, One("NamedNetwork")),
        ),
    ),
    by(
        "delete",
        post("/v1/networks/{name}", "Remove it", None, (204, Empty)),
    ),
];

/// The document.
#[must_use]
pub fn document() -> Value {
    let shapes = serde_json::to_value(Shapes::openapi()).unwrap_or_default();
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let path = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        path[endpoint.method] = operation(endpoint);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Kiln",
            "description": "Run untrusted code in microVMs.",
            "version": format!("v{}", crate::API_VERSION),
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "paths": paths,
        "components": shapes["components"],
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let in_path = endpoint
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let parameter = |name: &str, place: &str| {
        json!({
            "name": name, "in": place, "required": place == "path", "schema": {"type": "string"},
        })
    };
    let parameters: Vec<_> = in_path
        .map(|name| parameter(name, "path"))
        .chain(endpoint.query.iter().map(|name| parameter(name, "query")))
        .collect();
    let (status, answer) = endpoint.answer;
    let mut operation = json!({
        "summary": endpoint.summary,
        "parameters": parameters,
        "responses": {
            status.to_string(): content(answer),
            "default": {
                "description": "A refusal or failure, with its stable code",
                "content": json_of(&reference("ErrorBody")),
            },
        },
    });
    if let Some(shape) = endpoint.request {
        let of_stream = matches!(answer, Stream);
        let key = if of_stream {
            "x-first-message"
        } else {
            "requestBody"
        };
        operation[key] = if of_stream {
            reference(shape)
        } else {
            json!({"content": json_of(&reference(shape))})
        };
    }
    operation
}

fn content(answer: Answer) -> Value {
    match answer {
        Empty => json!({"description": "Done"}),
        One(shape) => json!({"description": shape, "content": json_of(&reference(shape))}),
        Many(shape) => {
            let array = json!({"type": "array", "items": reference(shape)});
            json!({"description": shape, "content": json_of(&array)})
        }
        Bytes(kind) => json!({"description": "Bytes", "content": {kind: {}}}),
        Stream => json!({"description": "A WebSocket: text is ClientControl and ServerControl"}),
    }
}

fn json_of(schema: &Value) -> Value {
    json!({"application/json": {"schema": schema}})
}

fn reference(shape: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{shape}")})
}
