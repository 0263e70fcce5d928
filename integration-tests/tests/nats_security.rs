//! Who is let in, and what they may do: wrong credentials, wrong certificates and missing permissions each end in a state
//! that says so, in words that tell an operator what to do; and go on once they are put right, without a restart.

use std::{
    error::Error,
    fs,
    time::{Duration, SystemTime},
};

use metricbus::{
    MetricBus,
    nats::{ConnectionState, ConnectionStatus, Delivery, Fleet, NatsForwarder, NatsOptions},
};
use metricbus_integration_tests::{
    nats::{
        Authority, Config, NatsServer, Operator, Outcome, Pod, Release, Told, User, source, until,
    },
    on_each_server,
};

/// What a pod and a planner see of their connection when they are refused: the same.
async fn refused(options: NatsOptions) -> Result<ConnectionStatus, Box<dyn Error>> {
    let bus = MetricBus::new();
    let forwarder = NatsForwarder::builder(&bus, options.clone())
        .source(source("pod-1"))
        .start()
        .await?;
    let fleet = Fleet::builder(options).start().await?;
    let pod = until("the forwarder to be refused", || {
        let connection = forwarder.status().connection;
        (connection.state == ConnectionState::Refused).then_some(connection)
    })
    .await;
    let planner = until("the fleet to be refused", || {
        let connection = fleet.status().connection;
        (connection.state == ConnectionState::Refused).then_some(connection)
    })
    .await;
    assert_eq!(pod.last_error, planner.last_error);
    Ok(pod)
}

/// That it ends in words which have all of these.
async fn refused_with(options: NatsOptions, words: &[&str]) -> Outcome {
    let why = refused(options).await?.last_error;
    let why = why.ok_or("refused without a word")?;
    for word in words {
        assert!(why.contains(word), "{word:?} is not in {why:?}");
    }
    Ok(())
}

/// That an alert of a pod with these options arrives at a fleet with them.
async fn admitted(options: NatsOptions) -> Outcome {
    let pod = Pod::with(options.clone(), source("pod-1"), |f| {
        f.delivery(Delivery::Core)
    })
    .await?;
    let fleet = Fleet::builder(options).start().await?;
    let heard = Told::of(fleet.on_alert())?;
    fleet.synced().await;
    pod.flap("a", 1)?;
    pod.flush().await;
    until("both alerts", || (heard.count() == 2).then_some(())).await;
    assert_eq!(
        pod.forwarder.status().connection.state,
        ConnectionState::Connected
    );
    Ok(())
}

async fn a_wrong_password_is_told_and_the_right_one_lets_in(release: Release) -> Outcome {
    let config = Config::core().user(User::password("worker", "correct-horse"));
    let server = NatsServer::with(release, config);
    let options = NatsOptions::new(&server.url())?;
    refused_with(
        options.clone(),
        &[&server.address().to_string(), "does not accept"],
    )
    .await?;
    let wrong = options
        .clone()
        .user_and_password("worker", "battery-staple");
    refused_with(wrong, &["worker", "check user, password"]).await?;
    let wrong = NatsOptions::new(&format!(
        "nats://worker:battery-staple@{}",
        server.address()
    ))?;
    let why = refused(wrong).await?;
    assert!(!format!("{why:?}").contains("battery-staple"), "{why:?}");

    admitted(options.user_and_password("worker", "correct-horse")).await?;
    let url = format!("nats://worker:correct-horse@{}", server.address());
    admitted(NatsOptions::new(&url)?).await
}

async fn a_password_that_the_server_learns_later_lets_in_without_a_restart(
    release: Release,
) -> Outcome {
    let old = Config::core().user(User::password("worker", "old"));
    let mut server = NatsServer::with(release, old);
    let options = NatsOptions::new(&server.url())?.user_and_password("worker", "new");
    let pod = Pod::with(options.clone(), source("pod-1"), |f| {
        f.delivery(Delivery::Core)
    })
    .await?;
    let fleet = Fleet::builder(options).start().await?;
    let heard = Told::of(fleet.on_alert())?;
    pod.flap("a", 3)?;
    until("the pod to be refused", || {
        (pod.forwarder.status().connection.state == ConnectionState::Refused).then_some(())
    })
    .await;
    server.restart_with(Config::core().user(User::password("worker", "new")));
    pod.flush().await;
    fleet.synced().await;
    pod.flap("b", 3)?;
    // Those before the fleet knew it are over, and no news to it.
    until("all alerts", || {
        (heard.by_group().get("KvFull worker=b")?.len() == 6).then_some(())
    })
    .await;
    Ok(())
}

async fn a_token_lets_in_and_a_wrong_one_is_told(release: Release) -> Outcome {
    let config = Config::core().line("authorization { token: \"swordfish\" }");
    let server = NatsServer::with(release, config);
    let options = NatsOptions::new(&server.url())?;
    refused_with(options.clone().token("haddock"), &["a token"]).await?;
    admitted(options.token("swordfish")).await?;
    admitted(NatsOptions::new(&format!(
        "nats://swordfish@{}",
        server.address()
    ))?)
    .await
}

async fn an_nkey_lets_in_and_a_wrong_one_is_told(release: Release) -> Outcome {
    let key = nkeys::KeyPair::new_user();
    let server = NatsServer::with(release, Config::core().user(User::nkey(&key.public_key())));
    let options = NatsOptions::new(&server.url())?;
    let stranger = nkeys::KeyPair::new_user().seed()?;
    refused_with(options.clone().nkey(&stranger), &["key"]).await?;

    let folder = tempfile::tempdir()?;
    let file = folder.path().join("worker.nk");
    fs::write(&file, format!("{}\n", key.seed()?))?;
    admitted(options.clone().nkey(key.seed()?)).await?;
    admitted(options.nkey_file(&file)).await
}

async fn a_credentials_file_lets_in_and_a_strangers_or_an_expired_one_is_told(
    release: Release,
) -> Outcome {
    let operator = Operator::new();
    let server = NatsServer::with(release, Config::core().operator(&operator));
    let options = NatsOptions::new(&server.url())?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("worker.creds");

    fs::write(&file, Operator::new().credentials())?;
    refused_with(
        options.clone().credentials_file(&file),
        &["does not accept"],
    )
    .await?;
    fs::write(&file, operator.expired_credentials())?;
    refused_with(options.clone().credentials_file(&file), &["credentials"]).await?;
    fs::write(&file, operator.credentials())?;
    admitted(options.clone().credentials_file(&file)).await?;
    admitted(options.credentials(operator.credentials())).await
}

async fn credentials_that_expire_are_told_and_the_renewed_file_lets_in_again(
    release: Release,
) -> Outcome {
    let operator = Operator::new();
    let server = NatsServer::with(release, Config::core().operator(&operator));
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("worker.creds");
    fs::write(
        &file,
        operator.credentials_until(SystemTime::now() + Duration::from_secs(2)),
    )?;
    let options = NatsOptions::new(&server.url())?.credentials_file(&file);
    let pod = Pod::with(options, source("pod-1"), |f| f.delivery(Delivery::Core)).await?;
    until("the pod to be connected", || {
        (pod.forwarder.status().connection.state == ConnectionState::Connected).then_some(())
    })
    .await;
    let status = until("the pod to be refused", || {
        let connection = pod.forwarder.status().connection;
        (connection.state == ConnectionState::Refused).then_some(connection)
    })
    .await;
    let why = status.last_error.unwrap_or_default();
    assert!(why.contains("credentials"), "{why}");
    pod.flap("a", 1)?;
    fs::write(&file, operator.credentials())?;
    pod.flush().await;
    Ok(())
}

async fn files_that_are_missing_or_hold_something_else_are_errors_at_the_start(
    release: Release,
) -> Outcome {
    let server = NatsServer::start(release);
    let options = NatsOptions::new(&server.url())?;
    let folder = tempfile::tempdir()?;
    let missing = folder.path().join("missing.file");
    let junk = folder.path().join("junk.file");
    fs::write(&junk, "junk")?;
    for file in [&missing, &junk] {
        let wrong = [
            options.clone().credentials_file(file),
            options.clone().nkey_file(file),
            options.clone().root_certificates(file),
            options.clone().client_certificate(file, file),
        ];
        for options in wrong {
            let error = Fleet::builder(options.clone()).start().await.err();
            let error = error
                .ok_or_else(|| format!("no error: {options:?}"))?
                .to_string();
            let name = file.file_name().and_then(|name| name.to_str());
            assert!(error.contains(name.unwrap_or("?")), "{error}");
        }
    }
    Ok(())
}

async fn a_server_of_another_authority_is_refused_and_one_of_ours_is_not(
    release: Release,
) -> Outcome {
    let (ours, other) = (Authority::new(), Authority::new());
    let server = NatsServer::with(release, Config::core().tls(&ours));
    let url = format!("tls://{}", server.address());
    let options = NatsOptions::new(&url)?;
    refused_with(options.clone(), &["authority", "root_certificates"]).await?;
    let wrong = options.clone().root_certificates(other.root());
    refused_with(wrong, &["authority", "root_certificates"]).await?;
    admitted(options.root_certificates(ours.root())).await?;
    let by_server = NatsOptions::new(&server.url())?.root_certificates(ours.root());
    admitted(by_server).await
}

async fn a_server_that_demands_certificates_refuses_who_has_none_or_a_strangers(
    release: Release,
) -> Outcome {
    let (ours, other) = (Authority::new(), Authority::new());
    let server = NatsServer::with(release, Config::core().tls(&ours).verify_clients());
    let options =
        NatsOptions::new(&format!("tls://{}", server.address()))?.root_certificates(ours.root());
    refused_with(options.clone(), &["certificate"]).await?;
    let theirs = other.client();
    let wrong = options
        .clone()
        .client_certificate(theirs.certificate, theirs.key);
    refused_with(wrong, &["certificate"]).await?;
    let own = ours.client();
    admitted(options.client_certificate(own.certificate, own.key)).await
}

async fn a_certificate_for_another_host_is_refused(release: Release) -> Outcome {
    let authority = Authority::new();
    let elsewhere = authority.elsewhere();
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?} }}",
        elsewhere.certificate, elsewhere.key
    );
    let server = NatsServer::with(release, Config::core().line(tls));
    let options = NatsOptions::new(&format!("tls://{}", server.address()))?
        .root_certificates(authority.root());
    refused_with(options, &["certificate is for another name"]).await
}

async fn tls_from_the_first_byte_works_where_the_server_can(release: Release) -> Outcome {
    if release == Release::Oldest {
        // It came with 2.10.
        return Ok(());
    }
    let authority = Authority::new();
    let server = NatsServer::with(release, Config::core().tls(&authority).tls_first());
    let options = NatsOptions::new(&format!("tls://{}", server.address()))?
        .root_certificates(authority.root());
    admitted(options.tls_first()).await
}

async fn a_server_without_tls_is_refused_by_who_requires_it(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let options = NatsOptions::new(&server.url())?.require_tls();
    refused_with(options, &["TLS"]).await
}

async fn a_pod_that_may_not_publish_says_what_and_sends_when_it_may(release: Release) -> Outcome {
    let user = || User::password("worker", "secret");
    let planner = || User::password("planner", "secret");
    let denied = user().deny_publish(&["metricbus.v1.*.*.*.a.>"]);
    let mut server = NatsServer::with(release, Config::core().user(denied).user(planner()));
    let options = NatsOptions::new(&server.url())?.user_and_password("worker", "secret");
    let pod = Pod::with(options, source("pod-1"), |f| f.delivery(Delivery::Core)).await?;
    let options = NatsOptions::new(&server.url())?.user_and_password("planner", "secret");
    let fleet = Fleet::builder(options).start().await?;
    let heard = Told::of(fleet.on_alert())?;
    fleet.synced().await;
    pod.flap("a", 1)?;
    pod.requests.inc_by(7);
    let status = until("a word of the denial", || {
        let status = pod.forwarder.status();
        (status.connection.denied > 0).then_some(status)
    })
    .await;
    assert_eq!(status.connection.state, ConnectionState::Connected);
    let why = status.connection.last_error.unwrap_or_default();
    let subject = "metricbus.v1.prod.decode.pod-1.a.KvFull.";
    assert!(why.contains("publish") && why.contains(subject), "{why}");
    // What it may send arrives all the same.
    pod.until_same_on(fleet.bus(), &source("pod-1")).await;
    assert_eq!(heard.count(), 0);
    assert!(
        pod.forwarder
            .flush(Duration::from_millis(100))
            .await
            .is_err()
    );
    assert_eq!(pod.forwarder.status().outbox.unconfirmed, 2);

    server.restart_with(Config::core().user(user()).user(planner()));
    pod.flush().await;
    until("both alerts", || (heard.count() == 2).then_some(())).await;
    Ok(())
}

async fn a_pod_that_may_not_be_asked_says_so_and_sends_all_the_same(release: Release) -> Outcome {
    let denied = User::password("worker", "secret").allow_subscribe(&["_INBOX.>"]);
    let planner = User::password("planner", "secret");
    let server = NatsServer::with(release, Config::core().user(denied).user(planner));
    let options = NatsOptions::new(&server.url())?.user_and_password("worker", "secret");
    let pod = Pod::with(options, source("pod-1"), |f| f.delivery(Delivery::Core)).await?;
    let why = until("a word of the denial", || {
        let connection = pod.forwarder.status().connection;
        (connection.denied > 0).then_some(connection.last_error)
    })
    .await;
    let why = why.unwrap_or_default();
    assert!(why.contains("subscribe to"), "{why}");

    let options = NatsOptions::new(&server.url())?.user_and_password("planner", "secret");
    let fleet = Fleet::builder(options).start().await?;
    let heard = Told::of(fleet.on_alert())?;
    until("the source to be known by its pulse", || {
        (!fleet.sources().is_empty()).then_some(())
    })
    .await;
    pod.flap("a", 1)?;
    pod.flush().await;
    until("both alerts", || (heard.count() == 2).then_some(())).await;
    Ok(())
}

async fn a_planner_that_may_not_subscribe_says_what_and_hears_when_it_may(
    release: Release,
) -> Outcome {
    let worker = || User::password("worker", "secret");
    let user = || User::password("planner", "secret");
    let denied = user().deny_subscribe(&["metricbus.v1.>"]);
    let mut server = NatsServer::with(release, Config::core().user(worker()).user(denied));
    let options = NatsOptions::new(&server.url())?.user_and_password("worker", "secret");
    let pod = Pod::with(options, source("pod-1"), |f| f.delivery(Delivery::Core)).await?;
    let options = NatsOptions::new(&server.url())?.user_and_password("planner", "secret");
    let fleet = Fleet::builder(options).start().await?;
    let why = until("a word of the denial", || {
        let connection = fleet.status().connection;
        (connection.denied > 0).then_some(connection.last_error)
    })
    .await;
    let why = why.unwrap_or_default();
    assert!(
        why.contains("subscribe to") && why.contains("metricbus.v1."),
        "{why}"
    );

    pod.requests.inc_by(7);
    server.restart_with(Config::core().user(worker()).user(user()));
    pod.until_same_on(fleet.bus(), &source("pod-1")).await;
    Ok(())
}

async fn jetstream_that_is_not_permitted_is_told(release: Release) -> Outcome {
    let denied = User::password("worker", "secret").deny_publish(&["$JS.API.>"]);
    let server = NatsServer::with(release, Config::jetstream().user(denied));
    let options = NatsOptions::new(&server.url())?.user_and_password("worker", "secret");
    let delivery = Delivery::JetStream {
        stream: "ALERTS".to_owned(),
        create: true,
    };
    let pod = Pod::with(options, source("pod-1"), |f| f.delivery(delivery)).await?;
    pod.flap("a", 1)?;
    let status = until("a word of the denial", || {
        let status = pod.forwarder.status();
        (status.connection.denied > 0).then_some(status)
    })
    .await;
    let why = status.connection.last_error.unwrap_or_default();
    assert!(why.contains("$JS.API"), "{why}");
    until("both alerts to wait for a stream", || {
        (pod.forwarder.status().outbox.unconfirmed == 2).then_some(())
    })
    .await;
    Ok(())
}

async fn jetstream_that_is_not_there_is_told(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let delivery = Delivery::JetStream {
        stream: "ALERTS".to_owned(),
        create: true,
    };
    let pod = Pod::with(NatsOptions::new(&server.url())?, source("pod-1"), |f| {
        f.delivery(delivery)
    })
    .await?;
    pod.flap("a", 1)?;
    until("a word of what is missing", || {
        let why = pod.forwarder.status().last_error?;
        why.contains("JetStream").then_some(())
    })
    .await;
    until("both alerts to wait for a stream", || {
        (pod.forwarder.status().outbox.unconfirmed == 2).then_some(())
    })
    .await;
    Ok(())
}

async fn no_secret_is_shown(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let key = nkeys::KeyPair::new_user().seed()?;
    let credentials = Operator::new().credentials();
    let address = server.address();
    let with_secrets = [
        NatsOptions::new(&format!("nats://worker:hunter2@{address}"))?,
        NatsOptions::new(&format!("nats://hunter2@{address}"))?,
        NatsOptions::new(&server.url())?.user_and_password("worker", "hunter2"),
        NatsOptions::new(&server.url())?.token("hunter2"),
        NatsOptions::new(&server.url())?.nkey(&key),
        NatsOptions::new(&server.url())?.credentials(&credentials),
    ];
    let bus = MetricBus::new();
    for options in with_secrets {
        let mut text = format!("{options:?}");
        // Some of them are of no use to this server, and that has to be said without them, too.
        let builder = NatsForwarder::builder(&bus, options).source(source("pod-1"));
        match builder.start().await {
            Ok(forwarder) => text += &format!("{:?}", forwarder.status()),
            Err(error) => text += &format!("{error} {error:?}"),
        }
        assert!(!text.contains("hunter2") && !text.contains(&key), "{text}");
        let seed = credentials.lines().find(|line| line.starts_with("SU"));
        assert!(!text.contains(seed.unwrap_or("SU")), "{text}");
        let token = credentials.lines().find(|line| line.starts_with("ey"));
        assert!(!text.contains(token.unwrap_or("ey")), "{text}");
    }
    Ok(())
}

on_each_server!(
    a_wrong_password_is_told_and_the_right_one_lets_in,
    a_password_that_the_server_learns_later_lets_in_without_a_restart,
    a_token_lets_in_and_a_wrong_one_is_told,
    an_nkey_lets_in_and_a_wrong_one_is_told,
    a_credentials_file_lets_in_and_a_strangers_or_an_expired_one_is_told,
    credentials_that_expire_are_told_and_the_renewed_file_lets_in_again,
    files_that_are_missing_or_hold_something_else_are_errors_at_the_start,
    a_server_of_another_authority_is_refused_and_one_of_ours_is_not,
    a_server_that_demands_certificates_refuses_who_has_none_or_a_strangers,
    a_certificate_for_another_host_is_refused,
    tls_from_the_first_byte_works_where_the_server_can,
    a_server_without_tls_is_refused_by_who_requires_it,
    a_pod_that_may_not_publish_says_what_and_sends_when_it_may,
    a_pod_that_may_not_be_asked_says_so_and_sends_all_the_same,
    a_planner_that_may_not_subscribe_says_what_and_hears_when_it_may,
    jetstream_that_is_not_permitted_is_told,
    jetstream_that_is_not_there_is_told,
    no_secret_is_shown,
);
