//! The one place where failures become answers.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use kiln_api::{ErrorBody, ErrorReport, code, stream::StreamError};
use serde_json::json;

/// A failure with its status.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    pub(crate) report: ErrorReport,
}

impl ApiError {
    pub(crate) fn of(status: StatusCode, report: ErrorReport) -> Self {
        Self { status, report }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::of(
            StatusCode::BAD_REQUEST,
            ErrorReport::new(code::INVALID_REQUEST, message),
        )
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        Self::of(
            StatusCode::PAYLOAD_TOO_LARGE,
            ErrorReport::new(
                code::REQUEST_TOO_LARGE,
                format!("the request has more than {limit} bytes"),
            ),
        )
    }

    pub(crate) fn forbidden() -> Self {
        Self::of(
            StatusCode::FORBIDDEN,
            ErrorReport::new(
                code::FORBIDDEN,
                "this daemon serves its own user and root only",
            )
            .with_hint("run kiln as that user, or use a daemon of your own"),
        )
    }

    pub(crate) fn unauthorized() -> Self {
        Self::of(
            StatusCode::UNAUTHORIZED,
            ErrorReport::new(code::UNAUTHORIZED, "this daemon does not know the token")
                .with_hint("send one of its tokens: `Authorization: Bearer …`"),
        )
    }

    pub(crate) fn stopping() -> Self {
        Self::of(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorReport::new(code::DAEMON_STOPPING, "the daemon is ending")
                .with_hint("its machines run on; ask again, and the next daemon answers"),
        )
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::of(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorReport::new(code::INTERNAL, message)
                .with_hint("this is a bug in Kiln; the daemon's log tells more"),
        )
    }

    pub(crate) fn no_such_path() -> Self {
        Self::of(
            StatusCode::NOT_FOUND,
            ErrorReport::new(code::NO_SUCH_PATH, "the API has no such path"),
        )
    }

    pub(crate) fn no_such_method() -> Self {
        Self::of(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorReport::new(
                code::METHOD_NOT_ALLOWED,
                "the path does not have this method",
            ),
        )
    }
}

impl From<kiln::Error> for ApiError {
    fn from(error: kiln::Error) -> Self {
        let status = StatusCode::from_u16(error.code().http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut report = ErrorReport::new(error.code().as_str(), error.message());
        if let Some(hint) = error.hint() {
            report = report.with_hint(hint);
        }
        if let Some(output) = error.details() {
            report = report.with_details(json!({ "output": output }));
        }
        Self { status, report }
    }
}

impl From<StreamError> for ApiError {
    fn from(error: StreamError) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        Self::invalid(format!("{error}{}", cause.unwrap_or_default()))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(
                code = self.report.code,
                message = self.report.message,
                "a request failed"
            );
        }
        (self.status, Json(ErrorBody { error: self.report })).into_response()
    }
}
