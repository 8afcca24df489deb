//! Declares the methods of routes; `Allow`, HEAD and OPTIONS follow from that.
//!
//! * The method filter of a route follows its path directly.
//! * Each filter whose path fits records its methods in the [`Offer`] of the request, so that a refusal names all of them.

use std::sync::{Arc, Mutex, PoisonError};

use warp::Filter;
use warp::http::{HeaderValue, Method};
use warp::reject::{Reject, Rejection};

use crate::{Reason, Refusal};

/// The methods of the path of one request, as far as routes have run, and whether its caller may write.
pub(crate) struct Offer {
    methods: Mutex<Vec<Method>>,
    writing: Result<(), Refusal>,
}

impl Offer {
    pub(crate) fn new(writing: Result<(), Refusal>) -> Self {
        Self { methods: Mutex::default(), writing }
    }

    fn record(&self, method: &Method) {
        let mut methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        if !methods.contains(method) {
            methods.push(method.clone());
        }
    }

    /// The value of `Allow`; nothing when no route has this path.
    pub(crate) fn allow(&self) -> Option<HeaderValue> {
        let methods = self.methods.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<&str> = methods.iter().chain([&Method::OPTIONS]).map(Method::as_str).collect();
        if methods.is_empty() { None } else { HeaderValue::try_from(names.join(", ")).ok() }
    }
}

/// The path has a route, but not for this method.
#[derive(Debug)]
struct NotOffered;

impl Reject for NotOffered {}

/// Reading: GET, and HEAD, whose body hyper leaves out.
pub fn get() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    offered(&[Method::GET, Method::HEAD], true)
}

/// Writing by POST: on an admin listener, for operators only.
pub fn post() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    offered(&[Method::POST], true)
}

/// Writing by PUT: on an admin listener, for operators only.
pub fn put() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    offered(&[Method::PUT], true)
}

/// Writing by DELETE: on an admin listener, for operators only.
pub fn delete() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    offered(&[Method::DELETE], true)
}

/// POST for callers that are no operators, on a listener that serves both.
pub fn unguarded_post() -> impl Filter<Extract = (), Error = Rejection> + Clone {
    offered(&[Method::POST], false)
}

fn offered(
    methods: &'static [Method],
    guarded: bool,
) -> impl Filter<Extract = (), Error = Rejection> + Clone {
    warp::method()
        .and(warp::ext::optional::<Arc<Offer>>())
        .and_then(move |asked: Method, offer: Option<Arc<Offer>>| {
            let verdict = judge(methods, guarded, &asked, offer.as_deref());
            async move { verdict }
        })
        .untuple_one()
}

fn judge(methods: &[Method], guarded: bool, asked: &Method, offer: Option<&Offer>) -> Result<(), Rejection> {
    if let Some(offer) = offer {
        methods.iter().for_each(|method| offer.record(method));
    }
    if !methods.contains(asked) {
        return Err(warp::reject::custom(NotOffered));
    }
    match offer {
        Some(offer) if guarded && !asked.is_safe() => offer.writing.clone().map_err(warp::reject::custom),
        Some(_) | None => Ok(()),
    }
}

/// The refusal in a rejection. A refusal to write precedes "not this method", which comes from routes with the same path.
pub fn refusal(rejection: &Rejection) -> Option<Refusal> {
    if let Some(refusal) = rejection.find::<Refusal>() {
        return Some(refusal.clone());
    }
    let not_offered = rejection.find::<NotOffered>();
    not_offered.map(|_| Refusal::new(Reason::MethodNotAllowed, "This method is not offered here."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_may_not_write_may_read_and_nothing_else() {
        let refused = || Offer::new(Err(Refusal::new(Reason::Unauthorized, "There is no token.")));
        for (method, reads) in [
            (Method::GET, true),
            (Method::HEAD, true),
            (Method::POST, false),
            (Method::PUT, false),
            (Method::DELETE, false),
            (Method::PATCH, false),
        ] {
            let methods = [method.clone()];
            assert_eq!(judge(&methods, true, &method, Some(&refused())).is_ok(), reads, "{method}");
            assert!(judge(&methods, false, &method, Some(&refused())).is_ok(), "{method}, for everybody");
            assert!(
                judge(&methods, true, &method, Some(&Offer::new(Ok(())))).is_ok(),
                "{method}, as an operator"
            );
        }
    }
}
