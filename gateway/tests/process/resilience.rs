//! What routes say of slow, full and broken backends: timeouts, retries, circuits, hedging, fallbacks.

use futures::future::select;
use serde_json::{Value, json};

use crate::harness::{Gateway, error_of, eventually, header, route_of, within};
use crate::worker::{Worker, nobody};

fn backend(name: &str, weight: u32, urls: &[&str]) -> Value {
    json!({"name": name, "weight": weight, "endpoints": urls})
}

async fn gateway(backends: Value, extra: Value, args: &[&str]) -> Gateway {
    let mut spec = json!({"backends": backends});
    spec.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
    Gateway::start(&route_of("chat", &spec), args).await
}

#[tokio::test]
async fn a_routes_timeouts_go_before_the_flags() {
    let mut worker = Worker::start().await;
    let timeouts = json!({"timeouts": {"firstByte": "200ms"}});
    let gateway = gateway(json!([backend("v1", 1, &[&worker.url()])]), timeouts, &[]).await;
    let (response, call) = tokio::join!(gateway.chat("chat", true), worker.call());
    assert_eq!(response.status(), 504);
    let error = error_of(response).await;
    assert_eq!(error["code"], "upstream_timeout");
    assert!(error["message"].as_str().expect("text").contains("0.2 seconds"), "{error}");
    call.abandoned().await;
}

#[tokio::test]
async fn a_whole_request_has_its_time_and_no_more() {
    let mut worker = Worker::start().await;
    let timeouts = json!({"timeouts": {"request": "300ms"}});
    let gateway = gateway(json!([backend("v1", 1, &[&worker.url()])]), timeouts, &[]).await;
    let (response, sending) = tokio::join!(gateway.chat("chat", true), async {
        let sending = worker.call().await.stream();
        sending.send("data: {}\n\n").await;
        sending
    });
    let text = within("the end", response.text()).await.expect("a clean end");
    assert!(text.starts_with("data: {}\n\n") && text.contains("upstream_timeout"), "{text}");
    assert!(text.contains("spec.timeouts.request") && !text.contains("[DONE]"), "{text}");
    sending.abandoned().await;
    assert_eq!(gateway.metric("fairlead_gateway_requests_total", "outcome=\"UpstreamTimeout\"").await, 1.0);
}

#[tokio::test]
async fn what_is_tried_again_and_how_often_is_the_routes_to_say() {
    let (mut one, two) = (Worker::start().await, Worker::start().await.answer_all("two"));
    // A server error is an answer, unless the route says that others are to be asked.
    for (retries, status) in
        [(json!({}), 500), (json!({"on": ["ServerError"]}), 200), (json!({"attempts": 1}), 500)]
    {
        let backends = json!([backend("v1", 1, &[&one.url()]), backend("v2", 0, &[&two.url()])]);
        let mut backends = backends;
        backends[0]["endpoints"] = json!([one.url(), two.url()]);
        let gateway = gateway(backends, json!({"retries": retries}), &[]).await;
        // Until the first worker is asked: the second answers what comes to it.
        let call = loop {
            let ask = gateway.chat("chat", false);
            let mut ask = std::pin::pin!(ask);
            tokio::select! {
                response = &mut ask => assert_eq!(response.status(), 200),
                call = one.call() => {
                    call.json(500, json!({"error": {"message": "no", "type": "t", "param": null, "code": null}}));
                    break within("an answer", ask).await;
                }
            }
        };
        assert_eq!(call.status().as_u16(), status, "{retries}");
    }
}

#[tokio::test]
async fn without_a_budget_nothing_is_tried_again() {
    let alive = Worker::start().await.answer_all("alive");
    let backends =
        json!([backend("v1", 1, &[&nobody().await, &nobody().await, &nobody().await, &alive.url()])]);
    let gateway = gateway(backends, json!({"retries": {"budgetPercent": 0}}), &[]).await;
    let mut refused = 0;
    for _ in 0..20 {
        refused += u32::from(gateway.chat("chat", false).await.status() == 503);
    }
    assert!(refused > 0, "three of four pods are dead");
    assert_eq!(gateway.metric("fairlead_gateway_retries_total", "").await, 0.0);
    assert_eq!(gateway.metric("fairlead_gateway_retries_denied_total", "").await, f64::from(refused));
}

#[tokio::test]
async fn a_full_backend_sheds_or_diverts() {
    for when_full in ["Shed", "Divert"] {
        let (mut small, large) = (Worker::start().await, Worker::start().await.answer_all("large"));
        let backends =
            json!([backend("small", 1_000_000, &[&small.url()]), backend("large", 1, &[&large.url()])]);
        let breaker = json!({"circuitBreaker": {"maxInFlight": 1, "whenFull": when_full}});
        let gateway = gateway(backends, breaker, &[]).await;
        let body = Gateway::chat_body("chat", false).to_string();
        let first = tokio::spawn(gateway.post("/v1/chat/completions", body).send());
        let call = small.call().await;
        let second = gateway.chat("chat", false).await;
        if when_full == "Shed" {
            assert_eq!((second.status().as_u16(), header(&second, "retry-after")), (503, "1"));
            assert_eq!(header(&second, "x-fairlead-backend"), "small");
            assert_eq!(error_of(second).await["code"], "backend_full");
        } else {
            assert_eq!((second.status().as_u16(), header(&second, "x-fairlead-backend")), (200, "large"));
            assert_eq!(header(&second, "x-fairlead-diverted-from"), "small");
        }
        call.json(200, json!({}));
        assert_eq!(within("the first", first).await.expect("joined").expect("an answer").status(), 200);
    }
}

#[tokio::test]
async fn requests_wait_for_a_place_where_they_may() {
    let mut worker = Worker::start().await;
    let breaker = json!({"circuitBreaker": {"maxInFlight": 1, "maxPending": 1}});
    let gateway = gateway(json!([backend("v1", 1, &[&worker.url()])]), breaker, &[]).await;
    let body = Gateway::chat_body("chat", false).to_string();
    let send = || tokio::spawn(gateway.post("/v1/chat/completions", body.clone()).send());
    let first = send();
    let call = worker.call().await;
    // Of two more one waits, whichever comes first, and the other finds no place.
    let (refused, waiting) = within("one is refused", select(send(), send())).await.into_inner();
    assert_eq!(refused.expect("joined").expect("an answer").status(), 503);
    call.json(200, json!({"n": 1}));
    worker.call().await.json(200, json!({"n": 2}));
    for request in [first, waiting] {
        assert_eq!(within("an answer", request).await.expect("joined").expect("an answer").status(), 200);
    }
}

#[tokio::test]
async fn a_backend_that_keeps_failing_is_left_alone_until_it_is_well() {
    let (mut bad, good) = (Worker::start().await, Worker::start().await.answer_all("good"));
    let backends = json!([backend("bad", 1_000_000, &[&bad.url()]), backend("good", 1, &[&good.url()])]);
    let breaker =
        json!({"circuitBreaker": {"consecutiveFailures": 2, "openFor": "500ms"}, "retries": {"attempts": 1}});
    let gateway = gateway(backends, breaker, &[]).await;
    for _ in 0..2 {
        let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
            bad.call().await.json(500, json!({"error": {"message": "no"}}));
        });
        assert_eq!(response.status(), 500);
    }
    let response = gateway.chat("chat", false).await;
    assert_eq!((response.status().as_u16(), header(&response, "x-fairlead-diverted-from")), (200, "bad"));
    // After a while one request tries it, and then all go there again.
    let tried = async {
        loop {
            let response = gateway.chat("chat", false).await;
            if header(&response, "x-fairlead-backend") == "bad" {
                break response;
            }
        }
    };
    let (response, ()) = tokio::join!(tried, async { bad.call().await.json(200, json!({})) });
    assert_eq!(response.status(), 200);
    let (response, ()) =
        tokio::join!(gateway.chat("chat", false), async { bad.call().await.json(200, json!({})) });
    assert_eq!(header(&response, "x-fairlead-backend"), "bad");
}

#[tokio::test]
async fn a_slow_beginning_is_hedged_and_the_loser_stops() {
    for stream in [true, false] {
        let (mut one, mut two) = (Worker::start().await, Worker::start().await);
        let backends = json!([backend("v1", 1, &[&one.url(), &two.url()])]);
        let gateway = gateway(backends, json!({"hedging": {"after": "100ms", "maxPercent": 100}}), &[]).await;
        let (response, slow) = tokio::join!(gateway.chat("chat", stream), async {
            let (slow, quick) = tokio::select! {
                call = one.call() => (call, &mut two),
                call = two.call() => (call, &mut one),
            };
            let call = quick.call().await;
            if stream {
                call.stream().send("data: {\"quick\":1}\n\ndata: [DONE]\n\n").await;
            } else {
                call.json(200, json!({"quick": 1}));
            }
            slow
        });
        assert_eq!(response.status(), 200);
        assert!(within("a body", response.text()).await.expect("text").contains("quick"));
        slow.abandoned().await;
        assert_eq!(gateway.metric("fairlead_gateway_hedges_total", "result=\"Won\"").await, 1.0);
        assert_eq!(gateway.metric("fairlead_gateway_requests_total", "").await, 1.0, "it is one request");
    }
}

#[tokio::test]
async fn hedging_has_a_budget() {
    let (mut one, mut two) = (Worker::start().await, Worker::start().await);
    let backends = json!([backend("v1", 1, &[&one.url(), &two.url()])]);
    let gateway = gateway(backends, json!({"hedging": {"after": "1ms", "maxPercent": 1}}), &[]).await;
    // What was saved for the beginning is soon used up.
    let requests: Vec<_> = (0..40)
        .map(|_| {
            let body = Gateway::chat_body("chat", false).to_string();
            tokio::spawn(gateway.post("/v1/chat/completions", body).send())
        })
        .collect();
    eventually("some are hedged and some are not", || async {
        gateway.metric("fairlead_gateway_hedges_total", "result=\"Denied\"").await >= 20.0
    })
    .await;
    let answer = async {
        loop {
            let call = tokio::select! { call = one.call() => call, call = two.call() => call };
            call.json(200, json!({}));
        }
    };
    let answered = async {
        for request in requests {
            assert_eq!(within("an answer", request).await.expect("joined").expect("an answer").status(), 200);
        }
    };
    tokio::select! { () = answered => {}, () = answer => unreachable!() }
    let hedged = gateway.metric("fairlead_gateway_hedges_total", "result=\"Won\"").await
        + gateway.metric("fairlead_gateway_hedges_total", "result=\"Lost\"").await;
    assert!(hedged <= 10.0, "{hedged}");
}

#[tokio::test]
async fn fallbacks_are_tried_in_order_for_what_they_are_for() {
    let (mut main, mut small) = (Worker::start().await, Worker::start().await);
    let last = Worker::start().await.answer_all("last");
    let backends = json!([
        backend("main", 1, &[&main.url()]),
        backend("small", 0, &[&small.url()]),
        backend("last", 0, &[&last.url()])
    ]);
    let fallbacks = json!({"fallbacks": [{"backend": "small", "on": ["Overloaded"]}, {"backend": "last"}],
        "timeouts": {"firstByte": "300ms"}, "retries": {"attempts": 1}});
    let gateway = gateway(backends, fallbacks, &[]).await;
    let error = json!({"error": {"message": "m", "type": "t", "param": null, "code": null}});
    let facts = |response: &reqwest::Response| {
        ["x-fairlead-backend", "x-fairlead-fallback-from", "x-fairlead-fallback-reason"]
            .map(|name| header(response, name).to_owned())
    };

    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        main.call().await.json(429, error.clone());
        small.call().await.json(200, json!({}));
    });
    assert_eq!(
        (response.status().as_u16(), facts(&response)),
        (200, ["small", "main", "Overloaded"].map(str::to_owned))
    );

    // The one that is for it fails, too.
    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        main.call().await.json(503, error.clone());
        small.call().await.json(500, error.clone());
    });
    assert_eq!(
        (response.status().as_u16(), facts(&response)),
        (200, ["last", "main", "Overloaded"].map(str::to_owned))
    );

    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        main.call().await.json(500, error.clone());
    });
    assert_eq!(
        (response.status().as_u16(), facts(&response)),
        (200, ["last", "main", "Error"].map(str::to_owned))
    );

    let (response, call) = tokio::join!(gateway.chat("chat", false), main.call());
    assert_eq!(
        (response.status().as_u16(), facts(&response)),
        (200, ["last", "main", "Timeout"].map(str::to_owned))
    );
    call.abandoned().await;

    // What is wrong with the request is wrong everywhere.
    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        main.call().await.json(400, error.clone());
    });
    assert_eq!((response.status().as_u16(), header(&response, "x-fairlead-fallback-from")), (400, ""));
    assert_eq!(gateway.metric("fairlead_gateway_fallbacks_total", "reason=\"Overloaded\"").await, 2.0);
}

#[tokio::test]
async fn when_no_fallback_can_do_better_the_first_failure_is_told() {
    let fallback = nobody().await;
    let backends = json!([backend("main", 1, &[&nobody().await]), backend("other", 0, &[&fallback])]);
    let gateway = gateway(backends, json!({"fallbacks": [{"backend": "other"}]}), &[]).await;
    let response = gateway.chat("chat", false).await;
    assert_eq!((response.status().as_u16(), header(&response, "x-fairlead-backend")), (503, "main"));
    assert_eq!(header(&response, "x-fairlead-fallback-from"), "");
    assert_eq!(error_of(response).await["code"], "upstream_unreachable");
}
