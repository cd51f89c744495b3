"""The services of BFCL's multi-turn tasks: every function that is documented, and what they refuse."""

import json
from pathlib import Path

import gymnasium as gym
import pytest

from verigym.tasks._bfcl_calls import parse_call
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import TaskDataError
from verigym.tasks.worlds.bfcl import ACTS, APIS, Services, lengthened, tables_of

DOCS = Path(__file__).resolve().parents[2] / "shared" / "data" / "bfcl_v4" / "func_doc"
NEEDS_DOCS = pytest.mark.skipif(not DOCS.is_dir(), reason="no documents of functions in ../shared/data")
JSON_TYPES = {"dict": "object", "float": "number"}
LINES = {"type": "file", "content": "b two\na one\nb two three"}
CONFIG = {
    "GorillaFileSystem": {
        "root": {
            "home": {
                "type": "directory",
                "contents": {
                    "notes.txt": LINES,
                    ".hidden": {"type": "file", "content": "x" * 2048},
                    "docs": {"type": "directory", "contents": {"other.txt": {"type": "file", "content": "a one"}}},
                },
            }
        }
    },
    "MathAPI": {},
    "MessageAPI": {"current_user": "USR001"},
    "TicketAPI": {
        "current_user": "ann",
        "ticket_counter": 7,
        "ticket_queue": [{"id": 3, "title": "Old", "status": "Open", "created_by": "ann"}, {"ticket_001": {}}],
    },
    "TradingBot": {
        "authenticated": True,
        "stocks": {"AAPL": {"price": 10.0, "percent_change": 2.5}, "ZETA": {"price": 20.0, "percent_change": -0.5}},
        "watch_list": ["ZETA"],
        "account_info": {"balance": 1000.0},
    },
    "TravelAPI": {
        "access_token": "key",
        "user_first_name": "Ann",
        "user_last_name": "Lee",
        "credit_card_list": {"card": {"balance": 5000}},
        "booking_record": {"old": {"travel_cost": 100.0, "card_id": "card"}},
    },
    "TwitterAPI": {
        "username": "ann",
        "password": "pw",
        "tweet_counter": 5,
        "tweets": {"0": {"id": 0, "username": "bo", "content": "Hello sun", "tags": ["#sky"], "mentions": []}},
        "following_list": ["bo"],
    },
    "VehicleControlAPI": {"fuelLevel": 10.0},
}
TWEET = {"id": 0, "username": "bo", "content": "Hello sun", "tags": ["#sky"], "mentions": []}
POSTED = {"id": 5, "username": "ann", "content": "Hi", "tags": ["#a"], "mentions": []}
TICKET = {"id": 7, "title": "New", "description": "", "status": "Open", "priority": 1}
ORDER = {"order_id": 12446, "order_type": "Buy", "status": "Open", "price": 10.0, "amount": 5}
FLIGHT = "'2026-09-10', 'RMS', 'JFK', 'economy'"
TRIP = {
    "travel_date": "2026-09-10",
    "travel_from": "RMS",
    "travel_to": "JFK",
    "travel_class": "economy",
    "travel_cost": 420.0,
    "transaction_id": "45451592",
}
ALL_DOORS = "['driver', 'passenger', 'rear_left', 'rear_right']"

# Calls, one after the other in one world, and what they give: a result, or a part of an error.
EPISODES = {
    "files are read": [
        ("pwd()", {"current_working_directory": "/home"}),
        ("ls()", {"current_directory_content": ["docs", "notes.txt"]}),
        ("ls(a=True)", {"current_directory_content": [".hidden", "docs", "notes.txt"]}),
        ("cat('notes.txt')", {"file_content": "b two\na one\nb two three"}),
        ("cat('docs')", "is a folder"),
        ("cat('docs/other.txt')", "not the path"),
        ("sort('notes.txt')", {"sorted_content": "a one\nb two\nb two three"}),
        ("tail('notes.txt', 1)", {"last_lines": "b two three"}),
        ("tail('notes.txt', 0)", {"last_lines": ""}),
        ("tail('notes.txt', -1)", "at least 0"),
        ("grep('notes.txt', 'two')", {"matching_lines": ["b two", "b two three"]}),
        ("wc('notes.txt')", {"count": 3, "type": "lines"}),
        ("wc('notes.txt', 'w')", {"count": 7, "type": "words"}),
        ("wc('notes.txt', 'c')", {"count": 23, "type": "characters"}),
        ("wc('notes.txt', 'x')", "must be l, w or c"),
        ("du()", {"disk_usage": "2076 bytes"}),
        ("du(human_readable=True)", {"disk_usage": "2.03 KB"}),
        ("find(name='other')", {"matches": ["./docs/other.txt"]}),
        ("find('docs')", {"matches": ["docs/other.txt"]}),
        ("find()", {"matches": ["./.hidden", "./docs", "./docs/other.txt", "./notes.txt"]}),
        ("find('nowhere')", "no file or folder"),
        ("diff('notes.txt', 'missing')", "no file or folder 'missing'"),
    ],
    "files are changed": [
        ("touch('new')", {}),
        ("touch('new')", "already"),
        ("echo('text', 'new')", {"terminal_output": None}),
        ("echo('text', 'nowhere')", "touch creates one"),
        ("echo('text', 'docs')", "is a folder"),
        ("echo('text')", {"terminal_output": "text"}),
        ("diff('notes.txt', 'new')", {"diff_lines": "- b two\n- a one\n- b two three\n+ text"}),
        ("mkdir('box')", {}),
        ("mkdir('box')", "already"),
        ("mkdir('a/b')", "not the path"),
        ("mv('new', 'box')", {"result": "'new' moved to 'box'"}),
        ("cp('box', 'crate')", {"result": "'box' copied to 'crate'"}),
        ("cp('box', 'box')", "into itself"),
        ("cp('notes.txt', '.hidden')", "already"),
        ("find(name='new')", {"matches": ["./box/new", "./crate/new"]}),
        ("rmdir('box')", "not empty"),
        ("rmdir('notes.txt')", "is a file"),
        ("cd('box')", {"current_working_directory": "/home/box"}),
        ("mv('new', 'old')", {"result": "'new' moved to 'old'"}),
        ("rm('old')", {"result": "'old' removed"}),
        ("rm('old')", "no file or folder"),
        ("cd('..')", {"current_working_directory": "/home"}),
        ("cd('..')", {"current_working_directory": "/home"}),
        ("cd('notes.txt')", "is a file"),
        ("cd('docs/x')", "not the path"),
        ("rmdir('box')", {"result": "'box' removed"}),
        ("rm('crate')", {"result": "'crate' removed"}),
        ("ls()", {"current_directory_content": ["docs", "notes.txt"]}),
    ],
    "numbers": [
        ("absolute_value(-2)", {"result": 2.0}),
        ("add(1, 2.5)", {"result": 3.5}),
        ("subtract(1, 2.5)", {"result": -1.5}),
        ("multiply(3, 4)", {"result": 12.0}),
        ("divide(1, 4)", {"result": 0.25}),
        ("divide(1, 0)", "divided by 0"),
        ("power(2, 10)", {"result": 1024.0}),
        ("power(10, 400)", "too large"),
        ("power(-1, 0.5)", "error"),
        ("square_root(2, 3)", {"result": 1.41}),
        ("square_root(-2, 3)", "negative"),
        ("logarithm(36.0, 6.0, 4)", {"result": 2.0}),
        ("logarithm(100, 10, 0)", "precision"),
        ("logarithm(0, 10, 2)", "positive"),
        ("round_number(2.567, 1)", {"result": 2.6}),
        ("round_number(2.567)", {"result": 3.0}),
        ("percentage(1, 4)", {"result": 25.0}),
        ("percentage(1, 0)", "share of 0"),
        ("mean([1, 2, 6])", {"result": 3.0}),
        ("mean([])", "at least one"),
        ("sum_values([0.1, 0.2, 0.3])", {"result": 0.6}),
        ("max_value([1, 3, 2])", {"result": 3.0}),
        ("min_value([1, 3, 2])", {"result": 1.0}),
        ("standard_deviation([2, 4])", {"result": 1.0}),
        ("si_unit_conversion(1.5, 'km', 'cm')", {"result": 150000.0}),
        ("si_unit_conversion(1, 'milligrams', 'gram')", {"result": 0.001}),
        ("si_unit_conversion(1, 'km', 'kg')", "same thing"),
        ("si_unit_conversion(1, 'parsec', 'm')", "no SI unit"),
        ("imperial_si_conversion(1, 'miles', 'km')", {"result": 1.609344}),
        ("imperial_si_conversion(212, 'fahrenheit', 'celsius')", {"result": 100.0}),
        ("imperial_si_conversion(1, 'miles', 'kg')", "same thing"),
        ("imperial_si_conversion(1, 'cubits', 'm')", "no unit"),
        (f"add(1, {10**400})", "must be from"),
    ],
    "messages": [
        ("message_get_login_status()", {"login_status": True}),
        ("list_users()", {"user_list": ["Alice", "Bob", "Catherine", "Daniel"]}),
        ("get_user_id('Bob')", {"user_id": "USR002"}),
        ("get_user_id('Zed')", "no user Zed"),
        ("add_contact('Zed')", {"added_status": True, "user_id": "USR005", "message": "Zed was added"}),
        ("add_contact('Zed')", {"added_status": False, "user_id": "USR005", "message": "Zed is there already"}),
        (
            "send_message('USR005', 'Hello Zed')",
            {"sent_status": True, "message_id": 4, "message": "the message to USR005 was sent"},
        ),
        (
            "send_message('USR999', 'Hello')",
            {"sent_status": False, "message_id": None, "message": "there is no user with the id USR999"},
        ),
        ("search_messages('hello')", {"results": [{"receiver_id": "USR005", "message": "Hello Zed"}]}),
        ("get_message_stats()", {"stats": {"received_count": 0, "total_contacts": 4}}),
        (
            "delete_message('USR005')",
            {"deleted_status": True, "receiver_id": "USR005", "message": "the latest message was deleted"},
        ),
        (
            "delete_message('USR005')",
            {"deleted_status": False, "receiver_id": "USR005", "message": "no message was sent to this user"},
        ),
        (
            "view_messages_sent()",
            {
                "messages": {
                    "USR002": ["My name is Alice. I want to connect."],
                    "USR003": ["Could you upload the file?"],
                    "USR004": ["Could you upload the file?"],
                }
            },
        ),
        ("message_login('USR002')", {"login_status": True, "message": "USR002 is logged in"}),
        ("view_messages_sent()", {"messages": {}}),
        ("get_message_stats()", {"stats": {"received_count": 1, "total_contacts": 1}}),
        ("message_login('nobody')", {"login_status": False, "message": "there is no user with the id nobody"}),
    ],
    "tweets": [
        ("post_tweet('Hi')", "call authenticate_twitter first"),
        ("authenticate_twitter('ann', 'wrong')", {"authentication_status": False}),
        ("posting_get_login_status()", {"login_status": False}),
        ("authenticate_twitter('ann', 'pw')", {"authentication_status": True}),
        ("posting_get_login_status()", {"login_status": True}),
        ("post_tweet('Hi', ['#a'])", POSTED),
        ("post_tweet(content='Ho')", {"id": 6, "username": "ann", "content": "Ho", "tags": [], "mentions": []}),
        ("get_tweet(0)", TWEET),
        ("get_tweet(9)", "no tweet 9"),
        ("comment(0, 'Nice')", {"comment_status": "Comment added successfully"}),
        ("comment(9, 'Nice')", "no tweet 9"),
        ("get_tweet_comments(0)", {"comments": [{"username": "ann", "content": "Nice"}]}),
        ("get_tweet_comments(5)", {"comments": []}),
        ("mention(5, ['@bo', '@bo'])", {"mention_status": "Users mentioned successfully"}),
        ("get_tweet(5)", {**POSTED, "mentions": ["@bo"]}),
        ("retweet(0)", {"retweet_status": "Successfully retweeted"}),
        ("retweet(0)", {"retweet_status": "Already retweeted"}),
        ("search_tweets('SUN')", {"matching_tweets": [TWEET]}),
        ("search_tweets('#sky')", {"matching_tweets": [TWEET]}),
        ("get_user_tweets('bo')", {"user_tweets": [TWEET]}),
        ("follow_user('cy')", {"follow_status": True}),
        ("follow_user('cy')", {"follow_status": False}),
        ("list_all_following()", {"following_list": ["bo", "cy"]}),
        ("get_user_stats('ann')", {"tweet_count": 2, "following_count": 2, "retweet_count": 1}),
        ("get_user_stats('bo')", {"tweet_count": 1, "following_count": 0, "retweet_count": 0}),
        ("unfollow_user('bo')", {"unfollow_status": True}),
        ("unfollow_user('bo')", {"unfollow_status": False}),
    ],
    "tickets": [
        ("ticket_get_login_status()", {"login_status": True}),
        ("create_ticket('New')", TICKET),
        ("create_ticket('New', '', 6)", "from 1 to 5"),
        ("get_ticket(7)", {**TICKET, "created_by": "ann"}),
        ("get_ticket(8)", "no ticket 8"),
        ("edit_ticket(7, {'priority': 5, 'status': 'Urgent'})", {"status": "Ticket 7 has been updated"}),
        ("edit_ticket(7, {'owner': 'bo'})", "no field 'owner'"),
        ("edit_ticket(7, {'title': 5})", "must be a text"),
        ("edit_ticket(7, {'priority': 9})", "from 1 to 5"),
        ("edit_ticket(7, {})", "updates must have"),
        ("get_user_tickets('urgent')",
         {"tickets": [{**TICKET, "status": "Urgent", "priority": 5, "created_by": "ann"}]}),
        ("resolve_ticket(7, 'Done so.')", {"status": "Ticket 7 has been resolved"}),
        ("resolve_ticket(7, 'Done so.')", "resolved already"),
        ("close_ticket(3)", {"status": "Ticket 3 has been closed"}),
        ("close_ticket(3)", "closed already"),
        ("logout()", {"success": True}),
        ("logout()", {"success": False}),
        ("create_ticket('New')", "call ticket_login first"),
        ("ticket_login('bo', '')", {"success": False}),
        ("ticket_login('bo', 'pw')", {"success": True}),
        ("get_user_tickets()", {"tickets": []}),
    ],
    "trading": [
        ("trading_get_login_status()", {"status": True}),
        ("get_current_time()", {"current_time": "10:30 AM"}),
        ("get_symbol_by_name('Zeta Corp')", {"symbol": "ZETA"}),
        ("get_symbol_by_name('Nobody')", {"symbol": "Stock not found"}),
        ("get_stock_info('AAPL')", {"price": 10.0, "percent_change": 2.5}),
        ("get_stock_info('NONE')", "no stock"),
        ("get_available_stocks('Technology')", {"stock_list": ["AAPL", "GOOG", "MSFT", "NVDA"]}),
        ("filter_stocks_by_price(['AAPL', 'ZETA', 'NONE'], 5, 15)", {"filtered_stocks": ["AAPL"]}),
        ("notify_price_change(['AAPL', 'ZETA'], 1)", {"notification": "Stocks AAPL have changed"}),
        ("notify_price_change(['ZETA'], 1)", {"notification": "No significant price changes"}),
        ("add_to_watchlist('AAPL')", {"watchlist": ["ZETA", "AAPL"]}),
        ("add_to_watchlist('NONE')", "no stock"),
        (
            "remove_stock_from_watchlist('ZETA')",
            {"status": "Stock ZETA removed from watchlist successfully"},
        ),
        ("remove_stock_from_watchlist('ZETA')", "not on the watchlist"),
        ("get_watchlist()", {"watchlist": ["AAPL"]}),
        ("place_order('Buy', 'AAPL', 10, 5)", ORDER),
        ("place_order('Hold', 'AAPL', 10, 5)", "Buy or Sell"),
        ("place_order('Sell', 'AAPL', 0, 5)", "above 0"),
        (
            "get_order_details(12446)",
            {"id": 12446, "order_type": "Buy", "symbol": "AAPL", "price": 10.0, "amount": 5, "status": "Open"},
        ),
        ("get_order_details(1)", "no order 1"),
        ("get_order_history()", {"order_history": [12345, 12446]}),
        ("cancel_order(12446)", {"order_id": 12446, "status": "Cancelled"}),
        ("cancel_order(12446)", "cancelled and cannot"),
        ("cancel_order(12345)", "completed and cannot"),
        ("fund_account(0.5)", {"status": "Account funded successfully", "new_balance": 1000.5}),
        ("fund_account(-1)", "above 0"),
        ("withdraw_funds(100)", {"status": "Withdrawal successful", "new_balance": 900.5}),
        ("withdraw_funds(1000)", "only 900.5"),
        ("get_account_info()", {"account_id": 12345, "balance": 900.5, "binding_card": 1974202140965533}),
        (
            "get_transaction_history(end_date='2024-11-18')",
            {
                "transaction_history": [
                    {"type": "deposit", "amount": 0.5, "timestamp": "2024-11-18 10:30:00"},
                    {"type": "withdrawal", "amount": 100.0, "timestamp": "2024-11-18 10:30:00"},
                ]
            },
        ),
        ("get_transaction_history(start_date='2024-11-19')", {"transaction_history": []}),
        ("trading_login('ann', 'pw')", {"status": "Already logged in"}),
        ("trading_logout()", {"status": "Logged out successfully"}),
        ("trading_logout()", {"status": "No user is currently logged in"}),
        ("get_watchlist()", "call trading_login first"),
        ("trading_login('ann', 'pw')", {"status": "Logged in successfully"}),
    ],
    "travel": [
        ("travel_get_login_status()", {"status": True}),
        ("list_all_airports()", "{'airports': ['RMS', 'SBK'"),
        ("get_nearest_airport_by_city('rivermist')", {"nearest_airport": "RMS"}),
        ("get_nearest_airport_by_city('Atlantis')", "no airport"),
        ("get_flight_cost('RMS', 'JFK', '2026-09-10', 'economy')", {"travel_cost_list": [420.0]}),
        ("get_flight_cost('JFK', 'RMS', '2026-09-11', 'first')", {"travel_cost_list": [1050.0]}),
        ("get_flight_cost('JFK', 'JFK', '2026-09-11', 'first')", "one airport to another"),
        ("get_flight_cost('XXX', 'JFK', '2026-09-11', 'first')", "no airport 'XXX'"),
        ("get_flight_cost('RMS', 'JFK', 'soon', 'first')", "YYYY-MM-DD"),
        ("get_flight_cost('RMS', 'JFK', '2026-09-11', 'royal')", "economy, business or first"),
        (
            f"book_flight('key', 'card', {FLIGHT})",
            {
                "booking_id": "3426812",
                "transaction_id": "45451592",
                "booking_status": True,
                "booking_history": {"booking_id": "3426812", **TRIP},
            },
        ),
        (f"book_flight('wrong', 'card', {FLIGHT})", "access token is not valid"),
        (f"book_flight('key', 'nothing', {FLIGHT})", "no credit card"),
        ("get_credit_card_balance('key', 'card')", {"card_balance": 4580.0}),
        (
            "purchase_insurance('key', 'full', 80, '3426812', 'card')",
            {"insurance_id": "498276044", "insurance_status": True},
        ),
        ("purchase_insurance('key', 'full', -1, '3426812', 'card')", "at least 0"),
        (
            "retrieve_invoice('key', '3426812', '498276044')",
            {
                "invoice": {
                    "insurance_id": "498276044",
                    "booking_id": "3426812",
                    "insurance_type": "full",
                    "insurance_cost": 80.0,
                    "card_id": "card",
                    **TRIP,
                }
            },
        ),
        ("retrieve_invoice('key')", "booking_id or an insurance_id"),
        ("retrieve_invoice('key', insurance_id='1')", "no insurance 1"),
        (
            "contact_customer_support('3426812', 'Help')",
            {"customer_support_message": "Thank you for your message. We will look into it and contact you soon."},
        ),
        ("contact_customer_support('nothing', 'Help')", "no booking nothing"),
        ("cancel_booking('key', '3426812')", {"cancel_status": True}),
        ("get_credit_card_balance('key', 'card')", {"card_balance": 4920.0}),
        ("get_booking_history('key')", {"booking_history": {"old": {"travel_cost": 100.0, "card_id": "card"}}}),
        ("compute_exchange_rate('RMB', 'USD', 20000)", {"exchanged_value": 2857.14}),
        ("compute_exchange_rate('RMB', 'XXX', 20000)", "no currency 'XXX'"),
        ("set_budget_limit('key', 100)", {"budget_limit": 100.0}),
        ("set_budget_limit('key', -1)", "at least 0"),
        ("get_budget_fiscal_year()", {"budget_fiscal_year": "2026"}),
        ("verify_traveler_information('Ann', 'Lee', '1985-09-14', 'US876543')",
         {"verification_status": True, "verification_failure": None}),
        ("verify_traveler_information('Bo', 'Lee', '1985-09-14', 'US876543')",
         {"verification_status": False, "verification_failure": "the name is not that of the user"}),
        ("verify_traveler_information('Ann', 'Lee', '2020-09-14', 'US876543')",
         {"verification_status": False, "verification_failure": "the traveler must be at least 18 years old"}),
        ("get_all_credit_cards()", {"credit_card_list": {"card": {"balance": 4920.0}}}),
        ("register_credit_card('key', '4012', '12/2028', 'Ann Lee', 465)", "{'card_id'"),
        (
            "authenticate_travel('id', 'secret', 'refresh', 'read', 'Bo', 'Lee')",
            "{'expires_in': 3600",
        ),
        ("get_booking_history('key')", "access token is not valid"),
    ],
    "the car": [
        ("startEngine('START')", "doors must be locked"),
        (f"lockDoors(False, {ALL_DOORS})", {"lockStatus": "locked", "remainingUnlockedDoors": 0}),
        ("startEngine('START')", "brake pedal"),
        ("setCruiseControl(50, True, 100)", "engine must run"),
        ("pressBrakePedal(1)", {"brakePedalStatus": "pressed", "brakePedalForce": 1000.0}),
        ("pressBrakePedal(2)", "from 0 to 1"),
        (
            "startEngine('START')",
            {"engineState": "running", "fuelLevel": 10.0, "batteryVoltage": 12.6},
        ),
        (
            "setCruiseControl(50, True, 100)",
            {"cruiseStatus": "active", "currentSpeed": 0.0, "distanceToNextVehicle": 100.0},
        ),
        ("setCruiseControl(51, True, 100)", "multiple of 5"),
        ("setCruiseControl(50, True, -1)", "at least 0"),
        ("get_current_speed()", {"currentSpeed": 0.0}),
        ("releaseBrakePedal()", {"brakePedalStatus": "released", "brakePedalForce": 0.0}),
        ("lockDoors(True, ['driver'])", {"lockStatus": "unlocked", "remainingUnlockedDoors": 1}),
        ("lockDoors(True, ['roof'])", "must be one of driver"),
        ("fillFuelTank(5)", {"fuelLevel": 15.0}),
        ("fillFuelTank(36)", "holds 50.0"),
        ("fillFuelTank(-1)", "at least 0"),
        ("estimate_drive_feasibility_by_mileage(300)", {"canDrive": True}),
        ("estimate_drive_feasibility_by_mileage(301)", {"canDrive": False}),
        (
            "activateParkingBrake('engage')",
            {"parkingBrakeStatus": "engaged", "_parkingBrakeForce": 500.0, "_slopeAngle": 10.0},
        ),
        ("activateParkingBrake('maybe')", "must be one of engage, release"),
        (
            "adjustClimateControl(68, 'fahrenheit', 30, 'cool')",
            {"currentTemperature": 20.0, "climateMode": "cool", "humidityLevel": 50.0},
        ),
        ("adjustClimateControl(20, fanSpeed=101)", "from 0 to 100"),
        ("setHeadlights('auto')", {"headlightStatus": "on"}),
        ("setHeadlights('off')", {"headlightStatus": "off"}),
        ("set_navigation('1 Main St')", {"status": "Navigating to 1 Main St"}),
        ("find_nearest_tire_shop()", {"shopLocation": "456 Oakwood Avenue, Rivermist, 83214"}),
        (
            "check_tire_pressure()",
            {
                "tirePressure": {
                    "frontLeftTirePressure": 32.0,
                    "frontRightTirePressure": 32.0,
                    "rearLeftTirePressure": 32.0,
                    "rearRightTirePressure": 32.0,
                    "healthy_tire_pressure": True,
                    "car_info": {},
                }
            },
        ),
        ("get_zipcode_based_on_city('Rivermist')", {"zipcode": "83214"}),
        ("estimate_distance('94016', '83214')", {"distance": 980.0, "intermediaryCities": []}),
        ("estimate_distance('94016', '94016')", {"distance": 0.0, "intermediaryCities": []}),
        ("estimate_distance('94016', 'Rivermist')", "is no zipcode"),
        ("gallon_to_liter(10)", {"liter": 37.85412}),
        ("liter_to_gallon(37.85412)", {"gallon": 10.0}),
        ("display_log(['a', 'b'])", {"log": ["a", "b"]}),
        ("get_outside_temperature_from_google()", {"outsideTemperature": 25.0}),
        ("get_outside_temperature_from_weather_com()", {"outsideTemperature": 25.5}),
        ("displayCarStatus('fuel')", {"status": {"fuelLevel": 15.0}}),
        (
            "displayCarStatus('climate')",
            {
                "status": {
                    "currentACTemperature": 20.0,
                    "fanSpeed": 30,
                    "climateMode": "cool",
                    "humidityLevel": 50.0,
                }
            },
        ),
        (
            "displayCarStatus('doors')",
            {
                "status": {
                    "doorStatus": {
                        "driver": "unlocked",
                        "passenger": "locked",
                        "rear_left": "locked",
                        "rear_right": "locked",
                    }
                }
            },
        ),
        ("displayCarStatus('headlights')", {"status": {"headlightStatus": "off"}}),
        ("displayCarStatus('wheels')", "must be one of fuel"),
        ("startEngine('STOP')", {"engineState": "stopped", "fuelLevel": 15.0, "batteryVoltage": 12.6}),
    ],
}  # fmt: skip


def world(**changes):
    return Services(tables_of({**CONFIG, **changes}, list(APIS)))


def played(services, text):
    call = parse_call(text)
    return services.call(call["name"], call["arguments"])


@pytest.mark.parametrize("episode", EPISODES)
def test_a_service_does_what_is_documented(episode):
    services = world()
    for text, expected in EPISODES[episode]:
        result = played(services, text)
        failed = services.events[-1].failed
        if isinstance(expected, str) and not expected.startswith("{"):
            assert failed, text
            assert expected in result, text
        elif isinstance(expected, str):
            assert str(json.loads(result)).startswith(expected), text
        else:
            assert not failed, (text, result)
            assert json.loads(result) == expected, text


def test_every_function_is_among_the_episodes():
    played = {parse_call(text)["name"] for episode in EPISODES.values() for text, _ in episode}
    assert played == set(Services.tools())


def test_acts_are_the_functions_that_write():
    writing = set()
    for episode in EPISODES.values():
        services = world()
        for text, _ in episode:
            played(services, text)
        writing |= {event.name for event in services.events if event.touched}
    assert writing - {"cd"} == ACTS


@pytest.mark.parametrize("category", ["base", "long_context"])
def test_as_a_task_each_episode_earns_one_and_nothing_without_any_of_its_acts(tmp_path, category):
    rows, truths = [], []
    for name, episode in EPISODES.items():
        calls = [text for text, _ in episode]
        turns = [calls[start : start + 5] for start in range(0, len(calls), 5)]
        question = [[{"role": "user", "content": f"Do the things of part {part}."}] for part in range(len(turns))]
        rows.append({"id": name, "question": question, "initial_config": CONFIG, "involved_classes": list(APIS)})
        truths.append({"id": name, "ground_truth": turns})
    for file, lines in ((f"multi_turn_{category}.jsonl", rows), (f"multi_turn_{category}.answer.jsonl", truths)):
        (tmp_path / file).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    env = gym.make("verigym/BFCLMultiTurn-v0", source=str(tmp_path), category=category).unwrapped
    assert env.tasks.ids == list(EPISODES)
    dropped = 0
    for task in env.tasks:
        turns = task.target["turns"]
        assert play(env, task, turns) == 1.0, task.id
        for at, turn in enumerate(turns):
            for index, made in enumerate([] if isinstance(turn, str) else turn):
                if made["name"] in ACTS:
                    rest = turn[:index] + turn[index + 1 :]
                    dropped += 1
                    assert play(env, task, [*turns[:at], *([rest] if rest else []), *turns[at + 1 :]]) == 0.0, made
    assert dropped > 60


def play(env, task, turns):
    env.reset(seed=0, options={"task": task.id})
    rewards = [env.step(turn if isinstance(turn, str) else "".join(render_call(**made) for made in turn))[1]
               for turn in turns]  # fmt: skip
    return rewards[-1]


@NEEDS_DOCS
def test_names_types_and_defaults_are_those_of_the_documents():
    documents = [json.loads(line) for file in DOCS.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert {each["name"] for each in documents} == set(Services.tools())
    for document in documents:
        own = Services.tools()[document["name"]].parameters
        given = document["parameters"]
        assert list(own["properties"]) == list(given["properties"]), document["name"]
        assert set(own["required"]) == set(given["required"]), document["name"]
        for name, schema in given["properties"].items():
            ours = own["properties"][name]
            assert ours["type"] == JSON_TYPES.get(schema["type"], schema["type"]), (document["name"], name)
            assert ours.get("default") == schema.get("default"), (document["name"], name)
            assert bool(ours.get("description"))
            if "items" in schema:
                kind = schema["items"]["type"]
                assert ours["items"] == {"type": JSON_TYPES.get(kind, kind)}


def test_a_default_that_is_a_list_or_a_word_is_in_the_schema():
    properties = Services.tools()["post_tweet"].parameters["properties"]
    assert properties["tags"] == {
        "type": "array",
        "items": {"type": "string"},
        "default": [],
        "description": "Its tags, each with # before it, if the user wants any.",
    }
    assert Services.tools()["find"].parameters["properties"]["name"]["default"] == "None"


def test_numbers_of_bookings_and_cards_follow_from_the_order_of_the_calls():
    services = world(TravelAPI={"access_token": "key"})
    token = json.loads(played(services, "authenticate_travel('i', 's', 'r', 'read_write', 'Ann', 'Lee')"))
    assert token["access_token"] == "251675"
    card = json.loads(played(services, "register_credit_card('251675', '4012', '12/2028', 'Ann Lee', 465)"))
    assert card == {"card_id": "391310425148"}
    other = world(TravelAPI={"access_token": "key"})
    card = json.loads(played(other, "register_credit_card('key', '4012', '12/2028', 'Ann Lee', 465)"))
    assert card == {"card_id": "262919693687"}


def test_a_number_that_the_state_gives_is_used_in_place_of_one_that_is_drawn():
    state = tables_of({"TravelAPI": {"access_token": "key"}}, ["TravelAPI"])
    services = Services({**state, "travel": {**state["travel"], "given": {"2": "1234567"}}})
    played(services, "register_credit_card('key', '4012', '12/2028', 'Ann Lee', 465)")
    booked = played(services, "book_flight('key', '262919693687', '2026-10-15', 'SFO', 'LAX', 'first')")
    assert json.loads(booked)["booking_id"] == "1234567"


def test_a_field_of_a_configuration_that_is_null_is_as_one_that_is_left_out():
    for api in APIS:
        fields = ("orders", "stocks", "account_info", "tweets", "inbox", "ticket_queue", "doorStatus", "booking_record")
        assert tables_of({api: dict.fromkeys(fields)}, [api]) == tables_of({}, [api])


def test_what_no_document_limits_is_not_limited():
    config = {"access_token": "key", "credit_card_list": {"card": {"balance": 5}}, "booking_record": {"b": {}}}
    services = world(TravelAPI=config, TradingBot={"authenticated": True, "account_info": {"balance": 5}})
    assert "insurance_id" in played(services, "purchase_insurance('key', 'full', 80, 'b', 'card')")
    assert played(services, "get_credit_card_balance('key', 'card')") == '{"card_balance": -75.0}'
    assert "order_id" in played(services, "place_order('Buy', 'AAPL', 10, 500)")


def test_what_is_new_takes_the_number_that_the_configuration_says_is_next():
    tweets = {"0": {"id": 0, "username": "bo", "content": "old"}}
    services = world(TwitterAPI={"authenticated": True, "tweets": tweets, "tweet_counter": 0})
    assert json.loads(played(services, "post_tweet('new')"))["id"] == 0
    assert json.loads(played(services, "post_tweet('newer')"))["id"] == 1
    assert json.loads(played(services, "get_tweet(0)"))["content"] == "new"


def test_copies_of_copies_do_not_fill_the_memory():
    services, calls = world(), ["mkdir('box')", "touch('file')", "mv('file', 'box')"]
    for number in range(20):
        calls += [f"cp('box', 'copy{number}')", f"mv('copy{number}', 'box')"]
    results = [played(services, text) for text in calls]
    assert "no room" in " ".join(results)
    assert len(services.store.keys("files")) < 6000


def test_files_of_many_lines_are_not_compared():
    services = world()
    for name in ("a", "b"):
        played(services, f"touch('{name}')")
        services.call("echo", {"content": "x\n" * 501, "file_name": name})
    assert "at most 500 lines" in played(services, "diff('a', 'b')")


def test_an_engine_needs_fuel():
    services = world(VehicleControlAPI={})
    played(services, f"lockDoors(False, {ALL_DOORS})")
    played(services, "pressBrakePedal(1)")
    assert played(services, "startEngine('START')") == "error: there is no fuel in the tank"


def test_each_service_asks_who_is_there():
    services = world(TwitterAPI={}, TicketAPI={}, TradingBot={}, MessageAPI={}, TravelAPI={})
    for text, first in (
        ("post_tweet('Hi')", "authenticate_twitter"),
        ("create_ticket('New')", "ticket_login"),
        ("fund_account(5)", "trading_login"),
        ("view_messages_sent()", "message_login"),
        ("get_booking_history('None')", "authenticate_travel"),
    ):
        assert first in played(services, text)
        assert services.events[-1].failed


def test_the_order_of_calls_on_different_things_does_not_count():
    calls = ["add_to_watchlist('AAPL')", "mkdir('b')", "mkdir('a')", "follow_user('z')", "follow_user('y')",
             "lockDoors(True, ['driver'])", "lockDoors(True, ['passenger'])"]  # fmt: skip
    first, second = world(), world()
    for services in (first, second):
        played(services, "authenticate_twitter('ann', 'pw')")
    for one, other in zip(calls, reversed(calls), strict=True):
        played(first, one)
        played(second, other)
    assert first.store.changes() == second.store.changes()


def test_a_long_world_is_a_function_of_its_seed_and_holds_all_that_the_short_one_does():
    short = tables_of(CONFIG, list(APIS))
    before = json.dumps(short)
    long, again, other = (lengthened(short, seed) for seed in ("row 1", "row 1", "row 2"))
    assert json.dumps(short) == before
    assert json.dumps(long) == json.dumps(again) != json.dumps(other)
    assert len(json.dumps(long)) > 50 * len(before)
    for name, records in short.items():
        assert {**long[name], **{key: record for key, record in records.items() if name != "car"}} == long[name]
    services = Services(long)
    played(services, "authenticate_twitter('ann', 'pw')")
    for text, expected in EPISODES["the car"][-3:-2] + EPISODES["trading"][:4]:
        assert isinstance(expected, str) or played(services, text), text
    assert json.loads(played(services, "post_tweet('Hi', ['#a'])")) == POSTED
    assert json.loads(played(services, "create_ticket('New')")) == TICKET


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("sort('a.txt')", {"name": "sort", "arguments": {"file_name": "a.txt"}}),
        ("  tail( 'a' , lines = 3 )", {"name": "tail", "arguments": {"file_name": "a", "lines": 3}}),
        ("get_tweet(3.0)", {"name": "get_tweet", "arguments": {"tweet_id": 3}}),
        ("message_login(7)", {"name": "message_login", "arguments": {"user_id": "7"}}),
        ("mean((1, -2.5))", {"name": "mean", "arguments": {"numbers": [1, -2.5]}}),
        ("mention(1, [2])", {"name": "mention", "arguments": {"tweet_id": 1, "mentioned_usernames": ["2"]}}),
        ("ls(a=True)", {"name": "ls", "arguments": {"a": True}}),
        ("echo('a', file_name=None)", {"name": "echo", "arguments": {"content": "a"}}),
        ("post_tweet('a', '#b', None)", {"name": "post_tweet", "arguments": {"content": "a", "tags": ["#b"]}}),
        ("fund_account('5')", {"name": "fund_account", "arguments": {"amount": 5.0}}),
        ("fund_account('five')", {"name": "fund_account", "arguments": {"amount": "five"}}),
        (
            "get_budget_fiscal_year(includeRemoved=True)",
            {"name": "get_budget_fiscal_year", "arguments": {"includeRemoved": "True"}},
        ),
    ],
)
def test_a_call_is_read_by_the_order_and_the_types_of_its_document(text, call):
    assert repr(parse_call(text)) == repr(call)


@pytest.mark.parametrize(
    "text",
    ["sort", "sort(", "sort(x)", "sort(__import__('os'))", "sort('a', 'b')", "sort('a', file_name='b')", "no('a')",
     "a.sort('a')", "sort(*['a'])", "sort(**{'file_name': 'a'})", "sort('a'); sort('b')", "sort('a' + 'b')", 5, None,
     "sort(" * 3000, f"sort('{'a' * 40_000}')", "mean([1e999])", "sort(b'a')", "lambda: 1"],
)  # fmt: skip
def test_what_is_no_call_of_literals_is_refused_in_one_line(text):
    with pytest.raises(TaskDataError, match="is not a call of literals") as caught:
        parse_call(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
