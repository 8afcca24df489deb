use super::*;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Two pauses, so three attempts; without jitter.
fn after(answer: Answer, attempt: i32) -> Step {
    decide(answer, attempt, &[seconds(10), seconds(100)], 0.5)
}

#[test]
fn the_whole_table() {
    let not_accepted = |status, retry_after| Answer::NotAccepted { status, retry_after };
    let again = [Step::Retry(seconds(10)), Step::Retry(seconds(100)), Step::GiveUp];
    let a_day = Step::Retry(seconds(86_400));
    let rows = [
        (Answer::Accepted, [Step::Delivered; 3]),
        (Answer::Gone, [Step::Disable; 3]),
        (Answer::NoRecipient, [Step::GiveUp; 3]),
        (not_accepted(500, None), again),
        (not_accepted(302, None), again),
        (not_accepted(400, None), again),
        (not_accepted(429, Some(seconds(1))), again),
        (
            not_accepted(429, Some(seconds(50))),
            [Step::Retry(seconds(50)), Step::Retry(seconds(100)), Step::GiveUp],
        ),
        (not_accepted(503, Some(Duration::MAX)), [a_day, a_day, Step::GiveUp]),
        (Answer::NoAnswer("timed out"), again),
    ];
    for (answer, steps) in rows {
        for (step, attempt) in steps.into_iter().zip(1..) {
            assert_eq!(after(answer, attempt), step, "{answer:?} at attempt {attempt}");
        }
    }
}

#[test]
fn the_jitter_is_a_tenth_in_either_direction() {
    let pause = |chance| decide(Answer::NoAnswer("timed out"), 1, &[seconds(10)], chance);
    assert_eq!(pause(0.0), Step::Retry(seconds(9)));
    assert_eq!(pause(1.0), Step::Retry(seconds(11)));
}
