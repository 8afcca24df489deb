//! Header fields that a filter gives to the answer of its request, whichever route answers it, and also when it is refused.
//!
//! * A field replaces one of the same name that the answer has.
//! * Outside of a request nothing is kept.

use std::cell::RefCell;

use warp::http::header::{HeaderMap, HeaderName, HeaderValue};

tokio::task_local! {
    static GIVEN: RefCell<HeaderMap>;
}

/// Gives a field to the answer of the request that is being answered.
pub fn give(name: HeaderName, value: HeaderValue) {
    // Without a request there is no answer, as in tests of filters.
    let _ = GIVEN.try_with(|given| given.borrow_mut().insert(name, value));
}

/// Runs `answer`; returns its output and the fields that were given to it.
pub(crate) async fn collect<F: Future>(answer: F) -> (F::Output, HeaderMap) {
    let answered = async {
        let output = answer.await;
        (output, GIVEN.with(RefCell::take))
    };
    GIVEN.scope(RefCell::default(), answered).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: HeaderName = HeaderName::from_static("x-test");

    #[tokio::test]
    async fn an_answer_gets_the_fields_of_its_own_request() {
        give(NAME, HeaderValue::from_static("nobody's"));
        let (first, second) = tokio::join!(
            collect(async {
                give(NAME, HeaderValue::from_static("1"));
                tokio::task::yield_now().await;
                give(NAME, HeaderValue::from_static("2"));
            }),
            collect(async { tokio::task::yield_now().await }),
        );
        assert_eq!(first.1.get_all(NAME).iter().collect::<Vec<_>>(), ["2"]);
        assert!(second.1.is_empty());
    }
}
