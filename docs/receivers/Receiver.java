// Receives Herald's callbacks with nothing but Java 17 or newer.
//
//     HERALD_SECRETS=whsec_… PORT=9000 java Receiver.java

import com.sun.net.httpserver.Headers;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.time.Instant;
import java.util.ArrayDeque;
import java.util.Base64;
import java.util.HashMap;
import java.util.HashSet;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Set;
import java.util.concurrent.Executors;
import java.util.regex.Pattern;
import javax.crypto.Mac;
import javax.crypto.spec.SecretKeySpec;

public class Receiver {
    static final int MAX_BODY_BYTES = 65_536; // The largest event there is.
    static final long TOLERANCE_S = 300;

    /** Several while one is being replaced. */
    static final List<String> SECRETS = Pattern.compile("[\\s,]+")
        .splitAsStream(System.getenv().getOrDefault("HERALD_SECRETS", "")).filter(text -> !text.isEmpty()).toList();
    /** Only if your endpoint has no webhook-signature. */
    static final boolean IS_DOJO = "dojo".equals(System.getenv("HERALD_SCHEME"));

    /** The key of webhook-signature: the base64 behind whsec_, if there is one. */
    static byte[] key(String secret) {
        return secret.startsWith("whsec_") ? Base64.getDecoder().decode(secret.substring(6)) : utf8(secret);
    }

    static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static byte[] hmac(byte[] key, byte[]... parts) {
        try {
            var mac = Mac.getInstance("HmacSHA256");
            mac.init(new SecretKeySpec(key, "HmacSHA256"));
            for (var part : parts) mac.update(part);
            return mac.doFinal();
        } catch (GeneralSecurityException impossible) {
            throw new IllegalStateException(impossible);
        }
    }

    static String header(Headers headers, String name) {
        return headers.getFirst(name) == null ? "" : headers.getFirst(name);
    }

    /** webhook-signature: base64 of HMAC-SHA256 over id.timestamp.body; one for each secret, with spaces between. */
    static boolean hasStandardSignature(Headers headers, byte[] body) {
        var timestamp = header(headers, "webhook-timestamp");
        if (!timestamp.matches("[0-9]{1,12}")) return false;
        if (Math.abs(Instant.now().getEpochSecond() - Long.parseLong(timestamp)) > TOLERANCE_S) return false;
        var signed = utf8(header(headers, "webhook-id") + "." + timestamp + ".");
        for (var secret : SECRETS) {
            var expected = utf8("v1," + Base64.getEncoder().encodeToString(hmac(key(secret), signed, body)));
            for (var given : header(headers, "webhook-signature").split(" ")) {
                if (MessageDigest.isEqual(expected, utf8(given))) return true; // In constant time, unlike equals.
            }
        }
        return false;
    }

    /** dojo-signature: HMAC-SHA256 over the body alone, keyed with the secret's text, in upper case: sha256=0A-1B-… */
    static boolean hasDojoSignature(Headers headers, byte[] body) {
        var hex = HexFormat.ofDelimiter("-").withUpperCase();
        var given = utf8(header(headers, "dojo-signature"));
        return SECRETS.stream()
            .anyMatch(secret -> MessageDigest.isEqual(utf8("sha256=" + hex.formatHex(hmac(utf8(secret), body))), given));
    }

    /** The texts of well-formed JSON by their path. The JDK has no JSON: where you have a library, use that instead. */
    static Map<String, String> texts(String json) {
        var found = new HashMap<String, String>();
        var path = new ArrayDeque<String>();
        var key = "";
        var tokens = Pattern.compile("\"([^\"\\\\]*+(?:\\\\.[^\"\\\\]*+)*+)\"(\\s*:)?|[{}\\[\\]]").matcher(json);
        while (tokens.find()) {
            switch (tokens.group().charAt(0)) {
                case '{', '[' -> path.addLast(key + "/");
                case '}', ']' -> path.removeLast();
                default -> {
                    if (tokens.group(2) != null) key = tokens.group(1);
                    else found.put(String.join("", path) + key, tokens.group(1));
                }
            }
        }
        return found;
    }

    // IN MEMORY ONLY, so that this file needs no driver: a restart forgets it. Use two tables of your database, and change
    // them in one transaction: seen(id primary key, at), kept for 36 days, and intents(id primary key, status, sequence).
    record Known(String status, String sequence) {}

    static final Set<String> SEEN = new HashSet<>();
    static final Map<String, Known> INTENTS = new HashMap<>();

    /** Takes an event once, and keeps the newest status of its intent. */
    static synchronized String store(String id, String intent, String status, String sequence) {
        if (!SEEN.add(id)) return "duplicate";
        var known = INTENTS.get(intent);
        if (known != null && sequence.compareTo(known.sequence()) <= 0) return "older"; // As text: it is no number.
        INTENTS.put(intent, new Known(status, sequence));
        return "applied";
    }

    /** The status to answer with. */
    static int receive(HttpExchange exchange) throws IOException {
        // The bytes as they came. A Reader would decode them, and a text that is encoded again can have other bytes.
        var body = exchange.getRequestBody().readNBytes(MAX_BODY_BYTES + 1);
        if (body.length > MAX_BODY_BYTES) return 413;
        var headers = exchange.getRequestHeaders();
        var id = header(headers, "webhook-id");
        var sequence = header(headers, "herald-sequence");
        var isVerified = IS_DOJO ? hasDojoSignature(headers, body) : hasStandardSignature(headers, body);
        if (id.isEmpty() || sequence.isEmpty() || !isVerified) return 400;
        var event = texts(new String(body, StandardCharsets.UTF_8));
        // Dojo's scheme signs no header: an old body with a new id would pass as new.
        if (!id.equals(event.get("/id"))) return 400;
        var intent = Objects.requireNonNull(event.get("/data/paymentIntentId"));
        var status = Objects.requireNonNull(event.get("/data/paymentStatus"));
        var result = store(id, intent, status, sequence);
        System.out.println(id + " " + intent + " " + status + " " + result);
        return 204; // It is stored. Whatever takes long belongs into a queue or another thread.
    }

    public static void main(String[] arguments) throws IOException {
        if (SECRETS.isEmpty() || SECRETS.stream().anyMatch(secret -> key(secret).length < 16)) {
            throw new IllegalArgumentException("HERALD_SECRETS: it has no secret, or one that is not whole");
        }
        var port = Integer.parseInt(System.getenv().getOrDefault("PORT", "9000"));
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.createContext("/", exchange -> {
            var status = 500; // What stands if something throws. Herald sends it again.
            try {
                status = receive(exchange);
            } finally {
                exchange.sendResponseHeaders(status, -1); // -1: no body.
                exchange.close();
            }
        });
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.start();
    }
}
