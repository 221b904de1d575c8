// Receives Herald's callbacks with nothing but Go 1.18 or newer.
//
//	HERALD_SECRETS=whsec_… PORT=9000 go run receiver.go
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxBodyBytes = 65_536 // The largest event there is.
	tolerance    = 5 * time.Minute
)

// Several while one is being replaced. The key of webhook-signature is the base64 behind whsec_, if there is one.
type secret struct{ text, key []byte }

var secrets []secret

func readSecrets() {
	isGap := func(r rune) bool { return r == ',' || r == ' ' }
	for _, text := range strings.FieldsFunc(os.Getenv("HERALD_SECRETS"), isGap) {
		key := []byte(text)
		if encoded := strings.TrimPrefix(text, "whsec_"); encoded != text {
			key, _ = base64.StdEncoding.DecodeString(encoded)
		}
		if len(key) < 16 { // Anybody can sign with an empty key.
			log.Fatal("HERALD_SECRETS: a secret is not whole")
		}
		secrets = append(secrets, secret{[]byte(text), key})
	}
	if len(secrets) == 0 {
		log.Fatal("HERALD_SECRETS: there is no secret")
	}
}

func mac(key []byte, parts ...[]byte) []byte {
	hash := hmac.New(sha256.New, key)
	for _, part := range parts {
		hash.Write(part)
	}
	return hash.Sum(nil)
}

// webhook-signature: base64 of HMAC-SHA256 over id.timestamp.body; one for each secret, with spaces between.
func hasStandardSignature(header http.Header, body []byte) bool {
	id, timestamp := header.Get("webhook-id"), header.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if age := time.Since(time.Unix(seconds, 0)); err != nil || age > tolerance || age < -tolerance {
		return false
	}
	for _, secret := range secrets {
		sum := mac(secret.key, []byte(id+"."+timestamp+"."), body)
		expected := []byte("v1," + base64.StdEncoding.EncodeToString(sum))
		for _, given := range strings.Split(header.Get("webhook-signature"), " ") {
			if hmac.Equal([]byte(given), expected) {
				return true
			}
		}
	}
	return false
}

// dojo-signature: HMAC-SHA256 over the body alone, keyed with the secret's text, in upper case: sha256=0A-1B-…
func hasDojoSignature(header http.Header, body []byte) bool {
	for _, secret := range secrets {
		digits := strings.ReplaceAll(fmt.Sprintf("% X", mac(secret.text, body)), " ", "-")
		if hmac.Equal([]byte(header.Get("dojo-signature")), []byte("sha256="+digits)) {
			return true
		}
	}
	return false
}

type event struct {
	ID   string `json:"id"`
	Data struct {
		Intent string `json:"paymentIntentId"`
		Status string `json:"paymentStatus"`
	} `json:"data"`
}

// IN MEMORY ONLY, so that this file needs no module: a restart forgets it. Use two tables of your database, and change
// them in one transaction: seen(id primary key, at), kept for 36 days, and intents(id primary key, status, sequence).
var (
	guard   sync.Mutex
	seen    = map[string]bool{}
	intents = map[string]struct{ status, sequence string }{}
)

// Takes an event once, and keeps the newest status of its intent.
func store(e event, sequence string) string {
	guard.Lock()
	defer guard.Unlock()
	if seen[e.ID] {
		return "duplicate"
	}
	seen[e.ID] = true
	if known, ok := intents[e.Data.Intent]; ok && sequence <= known.sequence { // Compared as text: it is no number.
		return "older"
	}
	intents[e.Data.Intent] = struct{ status, sequence string }{e.Data.Status, sequence}
	return "applied"
}

func main() {
	readSecrets()
	verify := hasStandardSignature
	if os.Getenv("HERALD_SCHEME") == "dojo" { // Only if your endpoint has no webhook-signature.
		verify = hasDojoSignature
	}
	http.HandleFunc("/", func(response http.ResponseWriter, request *http.Request) {
		// The bytes as they came. A json.Decoder on request.Body would take them away.
		body, err := io.ReadAll(http.MaxBytesReader(response, request.Body, maxBodyBytes))
		if err != nil {
			http.Error(response, "too large", http.StatusRequestEntityTooLarge)
			return
		}
		id, sequence := request.Header.Get("webhook-id"), request.Header.Get("herald-sequence")
		var e event
		// Dojo's scheme signs no header: an old body with a new id would pass as new, so both have to be the same.
		if sequence == "" || !verify(request.Header, body) || json.Unmarshal(body, &e) != nil || e.ID != id {
			http.Error(response, "not verified", http.StatusBadRequest)
			return
		}
		result := store(e, sequence)
		response.WriteHeader(http.StatusNoContent) // It is stored. Whatever takes long belongs into a goroutine or a queue.
		fmt.Println(id, e.Data.Intent, e.Data.Status, result)
	})
	port := os.Getenv("PORT")
	if port == "" {
		port = "9000"
	}
	server := http.Server{Addr: "127.0.0.1:" + port, ReadTimeout: 30 * time.Second}
	log.Fatal(server.ListenAndServe())
}
